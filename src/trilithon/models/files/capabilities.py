"""What a model can do besides text, by its chat template and its weights."""

import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["Capability", "capabilities_of", "has_vision_weights"]

Capability = Literal["thinking", "tools", "vision"]

# Words by which templates switch thinking on, or separate it from the answer.
_THINKING = re.compile(r"</?think(?:ing)?>|\[/?THINK\]|enable_thinking|reasoning_content|reasoning_effort|<\|channel")
_TOOLS = re.compile(r"\btools\b")
_OPENING, _CLOSING = re.compile(r"\{[%{]"), re.compile(r"[%}]\}")
# Tensors of an encoder in the same file, as Ollama packs them: its blocks, or the projection after it.
_ENCODER = ("v.blk.", "v.patch_embd", "mm.")


def capabilities_of(template: str, *, vision: bool) -> frozenset[Capability]:
    """The template shows whether the model thinks and calls tools. It does not show vision: the text-only sizes of a
    family share the template of the others."""
    has: dict[Capability, bool] = {
        "thinking": _THINKING.search(template) is not None,
        "tools": _uses_tools(template),
        "vision": vision,
    }
    return frozenset(name for name, present in has.items() if present)


def _uses_tools(template: str) -> bool:
    """Whether a statement or an expression uses the variable `tools`. Linear in the length of the text, also when
    brackets are never closed."""
    inside = (_CLOSING.split(part, maxsplit=1)[0] for part in _OPENING.split(template)[1:])
    return any(_TOOLS.search(code) for code in inside)


def has_vision_weights(names: Iterable[str]) -> bool:
    return any(name.startswith(_ENCODER) for name in names)

"""What a model can do beyond answering in text, told from its chat template and its weights."""

import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["Capability", "capabilities_of", "has_vision_weights"]

Capability = Literal["thinking", "tools", "vision"]

# Words that templates switch thinking with, or that part thoughts from the answer.
_THINKING = re.compile(r"</?think(?:ing)?>|\[/?THINK\]|enable_thinking|reasoning_content|reasoning_effort|<\|channel")
_TOOLS = re.compile(r"\btools\b")
_OPENING, _CLOSING = re.compile(r"\{[%{]"), re.compile(r"[%}]\}")
# Weights of an encoder in the same file, as Ollama packs them: its blocks, or the projection behind it.
_ENCODER = ("v.blk.", "v.patch_embd", "mm.")


def capabilities_of(template: str, *, sees: bool) -> frozenset[Capability]:
    """A template says whether it thinks and calls tools. Whether it sees it does not: the text-only sizes of a family
    share the template of those that do."""
    found: dict[Capability, bool] = {
        "thinking": _THINKING.search(template) is not None,
        "tools": _asks_for_tools(template),
        "vision": sees,
    }
    return frozenset(name for name, has in found.items() if has)


def _asks_for_tools(template: str) -> bool:
    """Whether a statement or an expression uses the variable that a request's tools come in. One walk through the
    text, however often what it opens is never closed."""
    inside = (_CLOSING.split(part, maxsplit=1)[0] for part in _OPENING.split(template)[1:])
    return any(_TOOLS.search(code) for code in inside)


def has_vision_weights(names: Iterable[str]) -> bool:
    return any(name.startswith(_ENCODER) for name in names)

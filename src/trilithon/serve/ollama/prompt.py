"""A prompt made by a template of the client's own: as much of Go's template language as single prompts need.

Ollama lets a request bring its template. What is understood is text, the four fields of a prompt, and `if … else …
end` on them; whatever goes further is refused, and belongs into a model's own template."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from trilithon.serve.validation import wrong

__all__ = ["render_prompt"]

_FIELDS: Final = (".System", ".Prompt", ".Response", ".Suffix")
# Short and without braces inside, so that a hostile text cannot make the search long.
_ACTION = re.compile(r"\{\{(-(?=\s))?([^{}]{0,200}?)((?<=\s)-)?\}\}")
_CONDITION = re.compile(r"(?:else\s+)?if\s+(\S+)")
_DEEPEST = 20


def render_prompt(template: str, *, system: str, prompt: str, suffix: str = "") -> str:
    """As Ollama renders it up to the answer, which is where `.Response` stands. Raises Problem."""
    values = {".System": system, ".Prompt": prompt, ".Suffix": suffix, ".Response": ""}
    return "".join(_shown(template, values))


def _shown(template: str, values: Mapping[str, str]) -> Iterator[str]:
    # Of each open `if`: whether what stands here is shown, and whether a branch of it was shown already.
    levels: list[tuple[bool, bool]] = []
    for text, action in _parts(template):
        shows = all(shown for shown, _ in levels)
        if shows:
            yield text
        if action.startswith("/*") or not action:
            continue
        if action in _FIELDS:
            if shows:
                if action == ".Response":
                    return
                yield values[action]
        else:
            _branch(action, levels, values)
    if levels:
        raise _refused("an if without its end")


def _branch(action: str, levels: list[tuple[bool, bool]], values: Mapping[str, str]) -> None:
    if action == "end" and levels:
        levels.pop()
    elif action == "else" and levels:
        _, before = levels[-1]
        levels[-1] = (not before, True)
    elif (condition := _CONDITION.fullmatch(action)) and condition[1] in _FIELDS:
        holds = bool(values[condition[1]])
        if action.startswith("if") and len(levels) < _DEEPEST:
            levels.append((holds, holds))
            return
        if not levels or action.startswith("if"):
            raise _refused(action)
        _, before = levels[-1]
        levels[-1] = (holds and not before, holds or before)
    else:
        raise _refused(action)


def _parts(template: str) -> Iterator[tuple[str, str]]:
    """Texts, each with the action behind it; `-` takes away the white space beside an action."""
    at, trims = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trims else text
        yield text.rstrip() if match[1] else text, match[2].strip()
        at, trims = match.end(), bool(match[3])
    rest = template[at:]
    if "{{" in rest:
        raise _refused("an action without its end")
    yield rest.lstrip() if trims else rest, ""


def _refused(what: str) -> Exception:
    return wrong(
        "template",
        f"template: {what[:60]!r} is not supported in a request's template, which may contain {', '.join(_FIELDS)} and "
        "if, else, end; create a model with its TEMPLATE in Jinja",
    )

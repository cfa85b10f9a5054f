"""The paragraphs of docs/doctor.md, which is in the package as board/doctor.md."""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from trilithon.errors import UserError

__all__ = ["explained_ids", "explanation"]

_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)


def explanation(name: str) -> str:
    """What the finding means, how it is checked and fixed. Raises UserError for a name that is none."""
    paragraphs = _paragraphs()
    if name not in paragraphs:
        near = get_close_matches(name, paragraphs, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(paragraphs)}"
        raise UserError(f"there is no finding {name}; {hint}")
    return paragraphs[name]


def explained_ids() -> tuple[str, ...]:
    return tuple(_paragraphs())


@cache
def _paragraphs() -> dict[str, str]:
    text = Path(__file__).with_name("doctor.md").read_text(encoding="utf-8")
    headings = [*_HEADING.finditer(text)]
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading[2]: f"{heading[2]}\n\n{text[heading.end() : end].strip()}"
        for heading, end in zip(headings, ends, strict=True)
        if heading[1] == "###"
    }

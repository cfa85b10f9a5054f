"""The paragraphs of docs/doctor.md, which is in the package as board/doctor.md."""

import re
from functools import cache
from pathlib import Path

from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives

__all__ = ["explained_ids", "explanation"]

_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)


def explanation(name: str) -> str:
    """What the finding means, how it is checked and fixed. Raises UserError for a name that is none."""
    paragraphs = _paragraphs()
    if name not in paragraphs:
        raise UserError(Message("there is no finding {name}; {fix}", name=name, fix=alternatives(name, paragraphs)))
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

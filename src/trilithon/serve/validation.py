"""What of a client's body goes on to the engine: what it means there, what means nothing here, what nobody can do."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trilithon.serve.http.errors import ApiError

__all__ = [
    "MOST_MESSAGES",
    "MOST_PROMPT_CHARACTERS",
    "MOST_TOOLS",
    "Rules",
    "ValidatedBody",
    "ignoring_header",
    "require_few",
    "require_schema",
    "require_short",
    "require_sound",
    "validate",
    "wrong",
]

MOST_MESSAGES: Final = 4096
MOST_TOOLS: Final = 256
MOST_PROMPT_CHARACTERS: Final = 8 << 20
_MOST_SCHEMA_CHARACTERS: Final = 256 << 10
# Deeper than any schema of use, and far from where Python's own recursion ends.
_MOST_DEPTH: Final = 100
_MOST_NAMED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The fields of a dialect's body. `passed` mean the same to the engine. `neutral` are those that change the answer
    and that nobody here can honour, each with the values that ask for nothing. All others are left out, and named in
    a header of the answer."""

    passed: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedBody:
    body: dict[str, Any]
    ignored: tuple[str, ...]


def validate(fields: Mapping[str, Any], rules: Rules) -> ValidatedBody:
    """A field that is null is as good as none. Raises Problem for what would be answered otherwise than it says."""
    body: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        if name in rules.passed:
            body[name] = value
        elif name in rules.neutral:
            if value not in rules.neutral[name]:
                raise wrong(name, f"{name} is not supported; leave it out")
        else:
            ignored.append(name)
    return ValidatedBody(body=body, ignored=tuple(ignored))


def ignoring_header(ignored: Iterable[str]) -> dict[str, str]:
    """Names come from the client: what a header cannot hold is not repeated in one."""
    names = sorted({name for name in ignored if name.isascii() and name.isprintable() and 0 < len(name) <= 64})
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return {"X-Trilithon-Ignored": ", ".join(names[:_MOST_NAMED] + more)} if names else {}


def wrong(field: str, message: str) -> ApiError:
    return ApiError(message, status=400, field=field)


def require_sound(value: Any) -> None:
    """JSON that every engine can take: no number without an end, no half character, no depth without a bottom."""
    level: list[Any] = [value]
    for _ in range(_MOST_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            else:
                _require_sound_value(item)
        if not below:
            return
        level = below
    raise wrong("", f"the body is nested deeper than {_MOST_DEPTH} levels; flatten it")


def _require_sound_value(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("", "a number in the body is infinite or NaN, which JSON does not allow")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wrong("", "a string in the body has half of a surrogate pair; send complete characters") from error


def require_few(items: Sequence[Any], most: int, field: str) -> None:
    if len(items) > most:
        raise wrong(field, f"{field} has {len(items)} entries; send {most} at most")


def require_short(text: str, field: str) -> None:
    if len(text) > MOST_PROMPT_CHARACTERS:
        raise wrong(field, f"{field} is over {MOST_PROMPT_CHARACTERS >> 20} MiB; send less")


def require_schema(schema: Any, field: str) -> None:
    """A JSON schema as an object, and not a huge one: it becomes a grammar, which each token is compared with."""
    if not isinstance(schema, Mapping):
        raise wrong(field, f"{field} must be a JSON schema: an object")
    if len(json.dumps(schema)) > _MOST_SCHEMA_CHARACTERS:
        raise wrong(field, f"{field} is over {_MOST_SCHEMA_CHARACTERS >> 10} KiB; send a smaller schema")

"""Which keywords of a JSON schema an engine's grammar holds. A keyword that it would drop without a word is found here,
before the engine is asked.

Places are written as JSON pointers in a fragment: `#/properties/a/pattern`."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal
from urllib.parse import unquote

from trilithon.tables import table_beside

__all__ = ["Grammar", "first_unheld", "for_llguidance", "regular"]

Grammar = Literal["chat", "llguidance"]
"""llama.cpp's own grammar of chats, or llguidance's."""

Schema = Mapping[str, Any]

_ONE = ("additionalProperties", "items", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
# llguidance refuses a divisor of more digits ("too many digits").
_MOST_DIGITS = 8
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
# Classes that Rust's regular expressions understand as Unicode's and ECMAScript as ASCII's.
_CLASSES = {"\\d": "0-9", "\\w": "A-Za-z0-9_"}
_PIECE = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|\(\?:?|.", re.DOTALL)
_ESCAPES = re.compile(r"\\(?:[dwsDWStnrfv]|[^A-Za-z0-9])", re.DOTALL)


@cache
def _table(name: str) -> frozenset[str]:
    return frozenset(table_beside(__file__, "keywords.toml")[name])


@cache
def _held(grammar: Grammar) -> frozenset[str]:
    return _table("chat") if grammar == "chat" else _table("chat") | _table("llguidance")


def first_unheld(schema: Any, grammar: Grammar) -> str:
    """The place of the first keyword that the grammar does not hold; empty where it holds them all."""
    return next(_Search(schema, grammar).unheld(schema, "#"), "")


class _Search:
    """Definitions are looked at where something refers to them."""

    def __init__(self, root: Any, grammar: Grammar) -> None:
        self._root = root
        self._grammar = grammar
        self._referred: set[str] = set()

    def unheld(self, schema: Any, place: str) -> Iterator[str]:
        if not isinstance(schema, Mapping):
            if self._grammar == "chat" or (place == "#" and schema is not True):
                yield place
            return
        keywords = _assertions(schema)
        for keyword in (name for name in schema if name in keywords):
            if keyword not in _held(self._grammar) or not self._expresses(keyword, schema, keywords):
                yield f"{place}/{keyword}"
        for inner, inner_place in _inner(schema, place):
            yield from self.unheld(inner, inner_place)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in self._referred and self._resolves(reference):
            self._referred.add(reference)
            yield from self.unheld(self._target(reference), reference)

    def _expresses(self, keyword: str, schema: Schema, keywords: frozenset[str]) -> bool:
        """Whether the grammar holds this keyword as it is used in `schema`."""
        value = schema[keyword]
        if not _is_usable(keyword, value):
            return False
        match keyword:
            case "$ref":
                alone = self._grammar == "llguidance" or keywords == {"$ref"}
                return alone and isinstance(value, str) and self._resolves(value)
            case "pattern":
                return isinstance(value, str) and regular(value) is not None
            case "format":
                return value not in _table("formats_unknown")
            case "patternProperties":
                return len(value) <= 1 and all(regular(name) is not None for name in value)
            case "minProperties" | "maxProperties":
                return set(schema.get("properties") or ()) <= set(schema.get("required") or ())
        return self._grammar == "llguidance" or _chat_expresses(keyword, schema, keywords)

    def _resolves(self, reference: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether it points into the document, and not at itself by way of other references."""
        if reference in seen or not (reference == "#" or reference.startswith("#/")):
            return False
        # llama.cpp knows no root, and does not undo the escapes of a pointer.
        if self._grammar == "chat" and (reference == "#" or "~" in reference or "%" in reference):
            return False
        try:
            target = self._target(reference)
        except LookupError:
            return False
        if not isinstance(target, Mapping):
            return target is True
        return all(
            self._resolves(str(inner["$ref"]), seen | {reference})
            for inner in _at_the_same_place(target)
            if "$ref" in inner
        )

    def _target(self, reference: str) -> Any:
        """Raises LookupError."""
        target = self._root
        for step in unquote(reference).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list):
                target = target[int(key) if key.isdecimal() else len(target)]
            elif isinstance(target, Mapping):
                target = target[key]
            else:
                raise KeyError(key)
        return target


def _is_usable(keyword: str, value: Any) -> bool:
    """Whether llguidance takes this value of a keyword that it knows."""
    match keyword:
        case "anyOf" | "oneOf":
            return any(branch is not False for branch in value)
        case "allOf":
            return False not in value
        case "multipleOf":
            return len(str(value)) <= _MOST_DIGITS
        case "exclusiveMinimum" | "exclusiveMaximum":
            return not isinstance(value, bool)  # as in draft 4
    return keyword not in _COUNTS or isinstance(value, int)  # 2.0 is a number of items too


def _chat_expresses(keyword: str, schema: Schema, keywords: frozenset[str]) -> bool:
    """llama.cpp's converter looks at one group of keywords of a schema, and passes over the others."""
    value = schema[keyword]
    if keyword in ("anyOf", "oneOf"):
        return keywords <= {keyword}
    if keyword in ("const", "enum"):
        return keywords <= {keyword, "type"}
    if keyword in _BOUNDS:
        lower = {"minimum", "exclusiveMinimum"} <= keywords
        upper = {"maximum", "exclusiveMaximum"} <= keywords
        return schema.get("type") == "integer" and not lower and not upper
    if keyword == "required":
        return isinstance(value, list) and set(map(str, value)) <= set(schema.get("properties") or ())
    return True


def _assertions(schema: Schema) -> frozenset[str]:
    """The keywords that an answer can break. A format of a number says how it is stored."""
    known = _table("formats") | _table("formats_unknown")
    return frozenset(
        keyword
        for keyword in schema.keys() & _table("assertions")
        if keyword != "format" or (str(schema["format"]) in known and schema.get("type") not in ("integer", "number"))
    )


def _inner(schema: Schema, place: str) -> Iterator[tuple[Any, str]]:
    for keyword in (*_ONE, *_NAMED, *_MANY):
        if keyword not in schema:
            continue
        value, there = schema[keyword], f"{place}/{keyword}"
        if keyword in _ONE:
            if keyword != "additionalProperties" or isinstance(value, Mapping):
                yield value, there
        elif isinstance(value, Mapping):
            yield from ((inner, f"{there}/{_escaped(name)}") for name, inner in value.items())
        elif isinstance(value, list):
            yield from ((inner, f"{there}/{position}") for position, inner in enumerate(value))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _at_the_same_place(schema: Schema) -> Iterator[Schema]:
    """The schema and those that describe the same value as it does."""
    yield schema
    for keyword in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(keyword)
        for branch in branches if isinstance(branches, list) else ():
            if isinstance(branch, Mapping):
                yield from _at_the_same_place(branch)


def regular(pattern: str) -> str | None:
    """The pattern as llguidance takes it; None where it is not regular: lookarounds, back references, word boundaries,
    Unicode's classes, and anchors inside."""
    start = "^" if pattern.startswith("^") else ""
    pieces = _PIECE.findall(pattern.removeprefix("^"))
    end = pieces.pop() if pieces and pieces[-1] == "$" else ""
    if any(piece in ("^", "$", "(?", "\\") for piece in pieces):
        return None
    if any("\\" in _ESCAPES.sub("", piece) for piece in pieces):
        return None
    return start + "".join(map(_ascii, pieces)) + end


def _ascii(piece: str) -> str:
    if piece in _CLASSES:
        return f"[{_CLASSES[piece]}]"
    if not piece.startswith("["):
        return piece
    return re.sub(r"\\.", lambda match: _CLASSES.get(match[0], match[0]), piece, flags=re.DOTALL)


def for_llguidance(schema: Any) -> Any:
    """A copy as llguidance takes it: without formats that say nothing about an answer, and with patterns in its
    syntax."""
    if isinstance(schema, list):
        return [for_llguidance(inner) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("enum", "const", "default", "examples"):
            copy[name] = value
        elif name == "pattern" and isinstance(value, str):
            copy[name] = regular(value) or value
        elif name == "patternProperties" and isinstance(value, Mapping):
            copy[name] = {regular(pattern) or pattern: for_llguidance(inner) for pattern, inner in value.items()}
        elif name != "format" or not isinstance(value, str) or "format" in _assertions(schema):
            copy[name] = for_llguidance(value)
    return copy

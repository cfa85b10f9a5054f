"""Which keywords of a JSON schema an engine's grammar holds. A keyword that it would drop without a word is found here,
before the engine is asked.

Places are written as JSON pointers in a fragment: `#/properties/a/pattern`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal
from urllib.parse import unquote

from trilithon.tables import table_beside

__all__ = ["Grammar", "evaluations", "first_unheld", "for_llguidance", "regular"]

Grammar = Literal["chat", "llguidance"]
"""llama.cpp's own grammar of chats, or llguidance's."""

Schema = Mapping[str, Any]

_ONE = ("additionalProperties", "items", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
# What describes parts of a value, and what describes the value itself once more.
_PARTS = ("additionalProperties", "items", "additionalItems", "contains", "propertyNames", "prefixItems", *_NAMED)
_ALTERNATIVES = ("not", "if", "then", "else", "anyOf", "oneOf", "allOf")
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
# llguidance refuses a divisor of more digits ("too many digits").
_MOST_DIGITS = 8
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
# Classes that Rust's regular expressions understand as Unicode's and ECMAScript as ASCII's.
_CLASSES = {"\\d": "0-9", "\\w": "A-Za-z0-9_"}
# A class that is not closed goes on to the end, so that each letter is looked at once.
_PIECE = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*(?:\]|\\?\Z)|\(\?:?|.", re.DOTALL)
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


def evaluations(schema: Any, levels: int = 0) -> int:
    """An upper bound of how often one part of an answer is compared with a schema: alternatives within alternatives
    multiply. A schema that refers to itself counts once, or as often as `levels` of an answer allow."""
    return _Evaluations(schema).of(schema, levels)


class _Search:
    """Definitions are looked at where something refers to them."""

    def __init__(self, root: Any, grammar: Grammar) -> None:
        self._root = root
        self._grammar = grammar
        self._referred: set[str] = set()
        self._resolved: dict[str, bool] = {}

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
            yield from self.unheld(_target(self._root, reference), reference)

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

    def _resolves(self, reference: str) -> bool:
        """Whether it points into the document, and not at itself by way of other references."""
        if reference not in self._resolved:
            self._resolved[reference] = False  # for a reference that leads back to this one
            self._resolved[reference] = self._resolves_anew(reference)
        return self._resolved[reference]

    def _resolves_anew(self, reference: str) -> bool:
        if not (reference == "#" or reference.startswith("#/")):
            return False
        # llama.cpp knows no root, and does not undo the escapes of a pointer.
        if self._grammar == "chat" and (reference == "#" or "~" in reference or "%" in reference):
            return False
        try:
            target = _target(self._root, reference)
        except LookupError:
            return False
        if not isinstance(target, Mapping):
            return target is True
        return all(self._resolves(str(inner["$ref"])) for inner in _at_the_same_place(target) if "$ref" in inner)


class _Evaluations:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._of_references: dict[tuple[str, int], int] = {}

    def of(self, schema: Any, levels: int) -> int:
        if not isinstance(schema, Mapping):
            return 1
        of_parts, of_alternatives = 1, 0  # in loops: generators would take half of Python's recursion
        for inner, _ in _inner(schema, "", _PARTS):
            of_parts = max(of_parts, self.of(inner, max(levels - 1, 0)))
        for inner, _ in _inner(schema, "", _ALTERNATIVES):
            of_alternatives += self.of(inner, levels)
        return of_parts + of_alternatives + self._of_reference(schema.get("$ref"), levels)

    def _of_reference(self, reference: Any, levels: int) -> int:
        if not isinstance(reference, str):
            return 0
        key = (reference, levels)
        if key not in self._of_references:
            self._of_references[key] = 1  # for a reference that leads back to this one
            try:
                self._of_references[key] = self.of(_target(self._root, reference), levels)
            except LookupError:
                return 1
        return self._of_references[key]


def _target(root: Any, reference: str) -> Any:
    """Of a reference into the document. Raises LookupError."""
    target = root
    for step in unquote(reference).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            is_position = key.isdecimal() and len(key) <= _MOST_DIGITS
            target = target[int(key) if is_position else len(target)]
        elif isinstance(target, Mapping):
            target = target[key]
        else:
            raise KeyError(key)
    return target


def _is_usable(keyword: str, value: Any) -> bool:
    """Whether llguidance takes this value of a keyword that it knows."""
    match keyword:
        case "anyOf" | "oneOf":
            return isinstance(value, list) and any(branch is not False for branch in value)
        case "allOf":
            return isinstance(value, list) and False not in value
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
        properties = schema.get("properties") or {}
        return isinstance(value, list) and isinstance(properties, Mapping) and set(map(str, value)) <= set(properties)
    return True


def _assertions(schema: Schema) -> frozenset[str]:
    """The keywords that an answer can break. A format of a number says how it is stored."""
    known = _table("formats") | _table("formats_unknown")
    return frozenset(
        keyword
        for keyword in schema.keys() & _table("assertions")
        if keyword != "format" or (str(schema["format"]) in known and schema.get("type") not in ("integer", "number"))
    )


def _inner(schema: Schema, place: str, keywords: Sequence[str] = (*_ONE, *_NAMED, *_MANY)) -> Iterator[tuple[Any, str]]:
    for keyword in keywords:
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

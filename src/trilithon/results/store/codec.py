"""Records as plain JSON values and back, checked against the records' own type hints.

One codec for the database's JSON columns and for the export files, so that neither can lose what the other keeps."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["LARGEST_INTEGER", "from_json", "to_json"]

Record = TypeVar("Record")

LARGEST_INTEGER = 2**63 - 1
"""What a column of SQLite holds; a file that asks for more is nonsense."""


def to_json(value: Any) -> Any:
    """A record as objects, lists and scalars. Infinite and undefined numbers, which JSON lacks, become text."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(kind: type[Record], data: Any, where: str = "") -> Record:
    """A record of the dataclass `kind`. A member with a default may be missing; an unknown one is refused.

    Raises ValueError, naming the member, for anything that does not fit the type hints."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or kind.__name__} is not an object")
    hints = get_type_hints(kind)
    for name in data:
        if name not in hints:
            raise ValueError(f"{where}{name} is unknown")
    values = {name: _checked(hints[name], item, f"{where}{name}") for name, item in data.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}{field.name} is missing")
    return kind(**values)


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return None if value is None and NoneType in arguments else _checked(arguments[0], value, where)
    if origin is Literal:
        return _choice(arguments, value, where)
    if origin is tuple:
        return _items(arguments[0], value, where)
    if origin is not None:
        return _members(arguments[1], value, where)
    if hint in _NOUNS:
        return _scalar(hint, value, where)
    return from_json(hint, value, f"{where}.")


def _choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise ValueError(f"{where} is {_shown(value)}, not one of {', '.join(map(str, choices))}")
    return value


def _items(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    return tuple(_checked(hint, item, f"{where}[{index}]") for index, item in enumerate(value))


def _members(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return {name: _checked(hint, item, f"{where}.{name}") for name, item in value.items()}


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        return _float(value, where)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {_shown(value)}, not {_NOUNS[kind]}")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{where} is too large")
    return value


def _float(value: int | str, where: str) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{where} is {_shown(value)}, not a number") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_NOUNS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

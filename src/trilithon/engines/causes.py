"""Known causes of failures, from the `causes.toml` of each engine: what a child prints, what it means, what helps.

A `causes.toml` has a table `[[causes]]` for each cause, with the fields of `KnownCause`, and at its top the lists
`harmless` and `restarts` (see `CauseTable`). Signs are parts of lines, in lower case."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib.resources.abc import Traversable
from typing import Any

__all__ = ["CAUSES_FILE", "CauseTable", "KnownCause", "read_causes"]

CAUSES_FILE = "causes.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCause:
    """`signs` are parts of lines; any of them gives the cause away.

    `settings_help` is false for causes that no setting of the engine changes: they lie in the model's file, the
    installation, the system or another program. A cause of a higher `precedence` number counts only where the log has
    none of a lower one: 1 for causes, 2 for their consequences, 3 for what is printed with any failure. One that is
    not `fatal` ends a request, but no process. `status` and `kind` are those of an HTTP answer."""

    cause: str
    advice: str
    signs: tuple[str, ...]
    settings_help: bool = True
    precedence: int = 1
    fatal: bool = True
    status: int = 500
    kind: str = "server_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseTable:
    """`harmless` are parts of lines that are warnings, whatever sign they have. After a line with a part in `restarts`
    the child starts again: lines before it do not count."""

    causes: tuple[KnownCause, ...] = ()
    harmless: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()

    @classmethod
    def merged(cls, tables: Iterable["CauseTable"]) -> "CauseTable":
        parts = list(tables)
        return cls(
            causes=tuple(cause for part in parts for cause in part.causes),
            harmless=tuple(sign for part in parts for sign in part.harmless),
            restarts=tuple(sign for part in parts for sign in part.restarts),
        )


def read_causes(file: Traversable) -> CauseTable:
    """An empty table where there is no such file. Raises ValueError, naming the file, for one that is malformed."""
    if not file.is_file():
        return CauseTable()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return CauseTable(
            causes=tuple(_cause(entry) for entry in content.get("causes", ())),
            harmless=_signs(content.get("harmless", [])),
            restarts=_signs(content.get("restarts", [])),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _cause(entry: dict[str, Any]) -> KnownCause:
    """Raises TypeError for keys that are unknown or missing, ValueError for values of another type."""
    cause = KnownCause(**{**entry, "signs": _signs(entry.get("signs", []))})
    for field in fields(cause):
        value = getattr(cause, field.name)
        if type(value) is not (tuple if field.name == "signs" else field.type):
            raise ValueError(f"{cause.cause}: {field.name} is {value!r}")
    return cause


def _signs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(sign, str) and sign == sign.lower() and sign for sign in value
    ):
        raise ValueError(f"signs are texts in lower case, not {value!r}")
    return tuple(value)

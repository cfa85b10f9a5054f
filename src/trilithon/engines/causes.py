"""Known causes of failures, from the `causes.toml` of each engine: what a child prints, what it means, what helps.

A `causes.toml` has a table `[[causes]]` for each cause, with the fields of `KnownCause`, and the other fields of
`CauseTable`. Signs are parts of lines, in lower case; the time of day in a vendor's line is not part of it."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources.abc import Traversable
from typing import Any

from trilithon.engines.vendor_log import vendor_line, without_time

__all__ = ["CAUSES_FILE", "CauseTable", "KnownCause", "LogCause", "cause_in", "read_causes"]

CAUSES_FILE = "causes.toml"
# Forms of a warning: llama.cpp's "0.00.005.961 W …", and "warning: …" with at most a name before it.
_WARNING = re.compile(r"(?:\d+\.)+\d+ W |\[?(?:\S+ )?\W*warn(?:ing)?\b|[^'\"]{0,60}\bwarning:", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCause:
    """`signs` are parts of lines; any of them gives the cause away. `pattern` does so too: a regular expression, whose
    group, if one matches, is put after the cause, as in "a shared library is missing: libgomp.so.1". With `library` the
    group is a shared library's name, and the advice names the package that has it.

    `under` names one of the table's circumstances, without which the cause does not count.

    `settings_help` is false for causes that no setting of the engine changes: they lie in the model's file, the
    installation, the system or another program. A cause of a higher `precedence` number counts only where the log has
    none of a lower one: 0 for what explains other causes, 1 for causes, 2 for their consequences, 3 for what the
    engine says with any failure, 4 for what it says without a reason. One that is not `fatal` ends a request, but no
    process. One with `warning` counts in a warning too. `status` and `kind` are those of an HTTP answer."""

    cause: str
    advice: str
    signs: tuple[str, ...] = ()
    pattern: str = ""
    library: bool = False
    under: str = ""
    settings_help: bool = True
    precedence: int = 1
    fatal: bool = True
    warning: bool = False
    status: int = 500
    kind: str = "server_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseTable:
    """`harmless` are parts of lines that are warnings, whatever sign they have. After a line with a part in `restarts`
    the child starts again: lines before it do not count. `circumstances` are regular expressions by name, which a
    whole log has or has not. `packages` are the packages of shared libraries on Debian and Ubuntu."""

    causes: tuple[KnownCause, ...] = ()
    harmless: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()
    circumstances: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def merged(cls, tables: Iterable["CauseTable"]) -> "CauseTable":
        parts = list(tables)
        return cls(
            causes=tuple(cause for part in parts for cause in part.causes),
            harmless=tuple(sign for part in parts for sign in part.harmless),
            restarts=tuple(sign for part in parts for sign in part.restarts),
            circumstances={name: regex for part in parts for name, regex in part.circumstances.items()},
            packages={library: package for part in parts for library, package in part.packages.items()},
        )

    def settings_help(self, cause: str) -> bool:
        """Whether other settings of the engine may change this outcome."""
        base = cause.partition(": ")[0]
        return not any(known.cause in (cause, base) for known in self.causes if not known.settings_help)


@dataclass(frozen=True, slots=True)
class LogCause:
    """What a log says: `cause` and `advice` in words, and the `line` that gave the cause away."""

    cause: str
    advice: str
    line: str
    known: KnownCause


def cause_in(table: CauseTable, lines: Sequence[str], *, log: str = "", died: bool = False) -> LogCause | None:
    """The cause with the lowest precedence number, of several the last one; None where the lines have none.

    `log` is the whole log, for the circumstances. `died` leaves out causes that end no process."""
    circumstances = {name for name, regex in table.circumstances.items() if re.search(regex, log, re.IGNORECASE)}
    causes = [known for known in table.causes if known.fatal or not died]
    causes = [known for known in causes if not known.under or known.under in circumstances]
    best: tuple[int, int, int] | None = None
    for place, line in enumerate(lines):
        text = without_time(line)
        lower, warns = text.lower(), _is_warning(line)
        if _has(lower, table.restarts):
            best = None
        if _has(lower, table.harmless):
            continue
        for order, known in enumerate(causes):
            rank = (known.precedence, -place, order)
            if (best is None or rank < best) and (known.warning or not warns) and _matches(known, text, lower):
                best = rank
    return None if best is None else _told(table, causes[best[2]], lines[-best[1]])


def _told(table: CauseTable, known: KnownCause, line: str) -> LogCause:
    match = re.search(known.pattern, without_time(line), re.IGNORECASE) if known.pattern else None
    name = next(filter(None, match.groups()), "").strip() if match else ""
    package = table.packages.get(name.rpartition("/")[2], "") if known.library else ""
    advice = f"run: sudo apt install {package} (Debian, Ubuntu); {known.advice}" if package else known.advice
    return LogCause(f"{known.cause}: {name}" if name else known.cause, advice, line, known)


def _matches(known: KnownCause, text: str, lower: str) -> bool:
    return _has(lower, known.signs) or bool(known.pattern and re.search(known.pattern, text, re.IGNORECASE))


def _has(line: str, signs: Iterable[str]) -> bool:
    return any(sign in line for sign in signs)


def _is_warning(line: str) -> bool:
    vendor = vendor_line(line)
    return vendor.level == "W" if vendor else _WARNING.match(line) is not None


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
            circumstances={name: _regex(regex) for name, regex in content.get("circumstances", {}).items()},
            packages=content.get("packages", {}),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _cause(entry: dict[str, Any]) -> KnownCause:
    """Raises TypeError for keys that are unknown or missing, ValueError for values of another type."""
    cause = KnownCause(**{**entry, "signs": _signs(entry.get("signs", []))})
    for part in fields(cause):
        value = getattr(cause, part.name)
        if type(value) is not (tuple if part.name == "signs" else part.type):
            raise ValueError(f"{cause.cause}: {part.name} is {value!r}")
    _regex(cause.pattern)
    return cause


def _regex(text: Any) -> str:
    try:
        return str(re.compile(text).pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error


def _signs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(sign, str) and sign == sign.lower() and sign for sign in value
    ):
        raise ValueError(f"signs are texts in lower case, not {value!r}")
    return tuple(value)

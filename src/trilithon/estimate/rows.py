"""Published measurements: rows of a table with one measurement each, and what their words say about how it was made."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.tables import table_beside

__all__ = [
    "COLUMNS",
    "Family",
    "Measurement",
    "atlas",
    "checked_rows",
    "family_of",
    "read_rows",
    "source_address",
    "why_dropped",
]

COLUMNS = (
    *("source", "date", "soc", "board", "engine", "unit", "model", "params_b", "quant", "threads_or_cores"),
    *("prompt_tokens", "gen_tokens", "prefill_tps", "decode_tps", "ttft_ms", "memory_mb", "notes"),
)
_NUMBERS = ("params_b", "prompt_tokens", "gen_tokens", "prefill_tps", "decode_tps", "ttft_ms", "memory_mb")
_UNITS = {"cpu", "gpu", "npu", "hybrid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How an engine computes: `unit` for prefill; `decode` is where decode runs, if elsewhere; `fork` tells builds of
    one family apart."""

    name: str
    unit: str
    fork: str
    decode: str = ""
    pipeline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row. Speeds in tokens per second, `ttft_ms` in milliseconds, `memory_mb` in MiB; None where not published.
    `chip` is empty for machines that `board` names."""

    source: str
    date: str
    chip: str
    board: str
    engine: str
    unit: str
    model: str
    params_b: float | None
    quant: str
    threads_or_cores: str
    prompt_tokens: float | None
    gen_tokens: float | None
    prefill_tps: float | None
    decode_tps: float | None
    ttft_ms: float | None
    memory_mb: float | None
    notes: str

    @property
    def family(self) -> Family:
        return family_of(self.engine, self.unit)

    @property
    def machine(self) -> str:
        return self.chip or self.board


@cache
def _table() -> Mapping[str, Any]:
    return table_beside(__file__, "families.toml")


@cache
def family_of(engine: str, unit: str) -> Family:
    """Raises UserError for a unit that does not exist."""
    words = f"{engine} / {unit}".lower()
    for row in _table()["families"]:
        if re.search(row["match"], words):
            fork = " ".join(re.findall(r"\(([^)]*)\)", engine)) or engine.partition(" ")[0]
            values = {key: value for key, value in row.items() if key != "match"}
            return Family(fork=fork.lower(), **values)
    raise UserError("unknown unit {unit!r}; write one of {names}", unit=unit, names=", ".join(sorted(_UNITS)))


@cache
def atlas() -> Sequence[Measurement]:
    """The rows of the package."""
    return tuple(read_rows(Path(__file__).with_name("atlas.csv")))


def read_rows(path: Path) -> Iterator[Measurement]:
    """The rows of a CSV file with `COLUMNS` (more are ignored). Raises UserError with the line of what is wrong."""
    for row in checked_rows(path):
        if isinstance(row, UserError):
            raise row
        yield row


def checked_rows(path: Path) -> Iterator[Measurement | UserError]:
    """The same with the error in the place of a row that is wrong. Raises UserError for a file that is no table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    "{path}: no column {names}; the columns are {columns}",
                    path=path,
                    names=", ".join(missing),
                    columns=", ".join(COLUMNS),
                )
            for row in reader:
                try:
                    yield _measurement(row, f"{path}:{reader.line_num}")
                except UserError as error:
                    yield error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError("{path} cannot be read as CSV: {reason}", path=path, reason=error) from error


def why_dropped(row: Measurement) -> str:
    """Why a row is no point for a model of speed; empty when it is one."""
    words = f"{row.threads_or_cores}; {row.notes}"
    for reason, pattern in _table()["notes"]["drop"]:
        if re.search(pattern, words):
            return str(reason)
    if not row.quant:
        return "no quantisation"
    return ""


def _measurement(row: Mapping[str, str | None], place: str) -> Measurement:
    values: dict[str, Any] = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in _NUMBERS:
        values[name] = _number(values[name], name, place)
    values["unit"] = values["unit"].lower()
    for name in ("source", "model", "engine"):
        if not values[name]:
            raise UserError("{place}: {name} is empty; every measurement states it", place=place, name=name)
    if values["unit"] not in _UNITS:
        raise UserError(
            "{place}: unit {values!r}; write one of {names}",
            place=place,
            values=values["unit"][:40],
            names=", ".join(sorted(_UNITS)),
        )
    if not (values["soc"] or values["board"]):
        raise UserError("{place}: soc and board are empty; state at least one", place=place)
    return Measurement(chip=values.pop("soc"), **values)


def _number(text: str, name: str, place: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e9:
        raise UserError("{place}: {name} {text!r} is not a positive number", place=place, name=name, text=text[:40])
    return number


@cache
def _sources() -> Mapping[str, str]:
    sources: Mapping[str, str] = table_beside(__file__, "sources.toml")["sources"]
    return sources


def source_address(source: str) -> str:
    """Where a row was published; empty for one that is not of the package."""
    return _sources().get(source, "")

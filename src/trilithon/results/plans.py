"""What a bench found best for a model on this board, kept for those who serve it: a small file, read without the rest.

One entry per weight file (its SHA-256) and board. A campaign that recommends nothing leaves the entry as it was."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.errors import StoreError
from trilithon.files import JsonStore

__all__ = ["Plan", "keep_plan", "plans_path", "read_plan"]

_NAME = "plans.json"
_MODE = 0o644  # one user may measure, and another serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`placement` as it is spelled; `sentence` is the campaign's verdict, `campaign` its number, `board` the machine
    that it was measured on."""

    sha256: str
    placement: str
    board: str
    campaign: int
    sentence: str


def plans_path(data: Path) -> Path:
    return data / _NAME


def keep_plan(data: Path, plan: Plan) -> None:
    """In place of an older one. Raises StoreError when it cannot be written."""
    store = _store(data)
    with store.locked():
        kept = [entry for entry in store.read() or () if (entry["sha256"], entry["board"]) != (plan.sha256, plan.board)]
        store.write([*kept, asdict(plan)])


def read_plan(data: Path, sha256: str, board: str) -> Plan | None:
    """The plan of that file on that board; None where there is none."""
    for entry in _store(data).read() or ():
        if sha256 and (entry["sha256"], entry["board"]) == (sha256, board):
            return Plan(**{name: entry[name] for name in Plan.__dataclass_fields__})
    return None


def _store(data: Path) -> JsonStore[list[Mapping[str, Any]]]:
    fix = "remove it, and measure again with trilithon bench"
    return JsonStore(path=plans_path(data), parse=_checked, fix=fix, error=StoreError, mode=_MODE)


def _checked(entries: Any) -> list[Mapping[str, Any]]:
    """Fields that a newer version added are kept."""
    fields = set(Plan.__dataclass_fields__)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and fields <= set(entry) for entry in entries):
        raise ValueError("it holds no plans")
    return entries

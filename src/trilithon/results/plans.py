"""What a bench found best for a model on this board, kept for those who serve it: a small file, read without the rest.

One entry per weight file (its SHA-256) and board. A campaign that recommends nothing leaves the entry as it was.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.errors import StoreError
from trilithon.files import replace_file

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
    path = plans_path(data)
    others = [entry for entry in _read(path) if (entry.get("sha256"), entry.get("board")) != (plan.sha256, plan.board)]
    try:
        data.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps([*others, asdict(plan)], indent=1, ensure_ascii=False) + "\n", mode=_MODE)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; free space or mend its permissions") from error


def read_plan(data: Path, sha256: str, board: str) -> Plan | None:
    """The plan of that file on that board; None where there is none."""
    for entry in _read(plans_path(data)):
        if sha256 and (entry.get("sha256"), entry.get("board")) == (sha256, board):
            return Plan(**{name: entry[name] for name in Plan.__dataclass_fields__})
    return None


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}; remove it, and measure again with trilithon bench"
        ) from error
    fields = set(Plan.__dataclass_fields__)
    if not isinstance(entries, list) or not all(isinstance(each, dict) and fields <= set(each) for each in entries):
        raise StoreError(f"{path} holds no plans; remove it, and measure again with trilithon bench")
    return entries

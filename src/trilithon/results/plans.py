"""The plans: which placement runs a model on this board, in a small file that is read without the rest.

One entry per weight file (its SHA-256) and board, made by a campaign (results/planning.py) or set by hand."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trilithon.errors import StoreError
from trilithon.files import JsonStore
from trilithon.language import Message, listed

__all__ = ["Plan", "change_plan", "keep_plan", "plans_path", "read_plan", "read_plans", "remove_plan"]

_NAME = "plans.json"
_MODE = 0o644  # one user may measure, and another serve
_OF_0_1 = ("sha256", "placement", "board", "campaign", "sentence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`placement` as it is spelled; `board` is the machine that it holds for. `model` is what `trilithon bench` was
    given: a name, or a path.

    `campaign` is the number of the campaign that made it, 0 for one that was set by hand (`by_hand`), and `sentence`
    its verdict. Its grounds: in `rounds` rounds the test `decided_by` was measured, and `compared` says whether they
    were enough to compare placements. `fingerprint` is the machine then, see results/fingerprints.py. Plans of version
    0.1 have neither grounds nor fingerprint."""

    sha256: str
    placement: str
    board: str
    campaign: int
    sentence: str
    model: str = ""
    decided_by: str = ""
    rounds: int = 0
    compared: bool = False
    by_hand: bool = False
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """ "set by hand", or "campaign 3, 7 rounds"."""
        if self.by_hand:
            return Message("set by hand")
        campaign = Message("campaign {number}", number=str(self.campaign))
        if not self.rounds:
            return campaign
        return listed((campaign, Message("{count} round", plural="{count} rounds", count=self.rounds)))


def plans_path(data: Path) -> Path:
    return data / _NAME


def change_plan(data: Path, sha256: str, board: str, decide: Callable[[Plan | None], Plan | None]) -> None:
    """Put what `decide` makes of the plan of that file on that board in its place; None removes it. Other processes
    wait meanwhile. Raises StoreError when the plans cannot be read or written."""
    store = _store(data)
    with store.locked():
        entries = list(store.read() or ())
        old = next((entry for entry in entries if _is_of(entry, sha256, board)), None)
        before = None if old is None else _plan(old)
        new = decide(before)
        if new != before:  # else what a newer version added to it stays
            kept = [entry for entry in entries if not _is_of(entry, sha256, board)]
            store.write([*kept, asdict(new)] if new is not None else kept)


def keep_plan(data: Path, plan: Plan) -> None:
    """In place of an older one. Raises StoreError when it cannot be written."""
    change_plan(data, plan.sha256, plan.board, lambda _: plan)


def remove_plan(data: Path, sha256: str, board: str) -> Plan | None:
    """The plan that there was. Raises StoreError."""
    plan = read_plan(data, sha256, board)
    if plan is not None:
        change_plan(data, sha256, board, lambda _: None)
    return plan


def read_plan(data: Path, sha256: str, board: str) -> Plan | None:
    """The plan of that file on that board; None where there is none."""
    entries = (entry for entry in _store(data).read() or () if sha256 and _is_of(entry, sha256, board))
    return next(map(_plan, entries), None)


def read_plans(data: Path) -> list[Plan]:
    """Of all files and boards."""
    return [_plan(entry) for entry in _store(data).read() or ()]


def _is_of(entry: Mapping[str, Any], sha256: str, board: str) -> bool:
    return (entry["sha256"], entry["board"]) == (sha256, board)


def _plan(entry: Mapping[str, Any]) -> Plan:
    return Plan(**{name: entry[name] for name in Plan.__dataclass_fields__ if name in entry})


def _store(data: Path) -> JsonStore[list[Mapping[str, Any]]]:
    fix = "remove it, and measure again with trilithon bench"
    return JsonStore(path=plans_path(data), parse=_checked, fix=fix, error=StoreError, mode=_MODE)


def _checked(entries: Any) -> list[Mapping[str, Any]]:
    """Fields that a newer version added are kept."""
    if not isinstance(entries, list) or not all(map(_is_plan, entries)):
        raise ValueError("it holds no plans")
    return entries


def _is_plan(entry: Any) -> bool:
    if not isinstance(entry, dict) or not set(_OF_0_1) <= set(entry):
        return False
    facts = entry.get("fingerprint", {})
    plain = {name: entry[name] for name in Plan.__dataclass_fields__ if name in entry and name != "fingerprint"}
    return (
        all(type(value) is Plan.__dataclass_fields__[name].type for name, value in plain.items())
        and isinstance(facts, dict)
        and all(isinstance(fact, str) for fact in facts.values())
    )

"""How much memory there is for models, what processes hold of it, and who must go to make room."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.runtime.memory_need import available_bytes

__all__ = ["Budget", "Resident", "fewest", "measured_budget", "resident"]

# Left to everybody else on the machine, and to the work buffers that no header tells.
_RESERVE_FRACTION, _LEAST_RESERVE_BYTES = 0.1, 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """From /proc/PID/status. What is shared (tmpfs, a driver's buffers that it maps so) counts as anonymous: like
    that, it cannot be read again from a file."""

    anonymous_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes for all models together. `now` can be used at once; `whole` includes what is being loaded just now, of
    which nobody can say how much it holds already."""

    now: int
    whole: int


class HeldMemory(Protocol):
    @property
    def need_bytes(self) -> int: ...
    @property
    def held_bytes(self) -> int | None: ...


class Needy(Protocol):
    need_bytes: int


N = TypeVar("N", bound=Needy)


def resident(pid: int, machine: Machine = THIS_MACHINE) -> Resident | None:
    """None when there is no such process, or it has ended."""
    fields = machine.fields(f"/proc/{pid}/status")
    kilobytes = {name: value.removesuffix(" kB") for name, value in fields.items() if name.startswith("Rss")}
    if not kilobytes.keys() >= {"RssAnon", "RssFile", "RssShmem"} or not all(map(str.isdecimal, kilobytes.values())):
        return None
    anonymous, mapped, shared = (int(kilobytes[name]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return Resident(anonymous_bytes=anonymous + shared, mapped_bytes=mapped)


def measured_budget(runners: Iterable[HeldMemory], machine: Machine = THIS_MACHINE) -> Budget | None:
    """What is available now and what our own runners hold, less a reserve; None where the kernel does not say.

    Of what they hold, the weights that a CPU engine maps are left out: as page cache they are available anyway.
    """
    available = available_bytes(machine)
    if available is None:
        return None
    now = whole = available
    for runner in runners:
        held = runner.held_bytes
        now += held or 0
        whole += runner.need_bytes if held is None else held
    return Budget(now=_less_reserve(now), whole=_less_reserve(whole))


def fewest(candidates: Sequence[N], missing_bytes: int, missing_places: int) -> list[N] | None:
    """The first of `candidates` that together make so much room, without those that need not go for it; None when
    all of them would not be enough."""
    chosen: list[N] = []
    for candidate in candidates:
        if _enough(chosen, missing_bytes, missing_places):
            break
        chosen.append(candidate)
    if not _enough(chosen, missing_bytes, missing_places):
        return None
    for candidate in reversed(chosen):
        others = [each for each in chosen if each is not candidate]
        if _enough(others, missing_bytes, missing_places):
            chosen = others
    return chosen


def _enough(chosen: Sequence[Needy], missing_bytes: int, missing_places: int) -> bool:
    return sum(each.need_bytes for each in chosen) >= missing_bytes and len(chosen) >= missing_places


def _less_reserve(total_bytes: int) -> int:
    return max(0, total_bytes - max(int(total_bytes * _RESERVE_FRACTION), _LEAST_RESERVE_BYTES))

"""How much memory there is for models, how much processes use, and which models to evict to make room."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from trilithon.board.limits.memory import read_memory
from trilithon.board.sysfs import THIS_MACHINE, Machine

__all__ = ["Budget", "ProcessMemory", "fewest", "measured_budget", "process_memory"]

# For other processes, and for work buffers, which a model's header does not state.
_RESERVE_FRACTION, _MIN_RESERVE_BYTES = 0.1, 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Resident memory, from /proc/PID/status. Shared memory (tmpfs, buffers that a driver maps so) counts as
    anonymous: neither can be read again from a file."""

    anonymous_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes for all models together. `now` can be used at once; `total` includes the models that are loading, whose
    present use is not known."""

    now: int
    total: int


class HeldMemory(Protocol):
    @property
    def need_bytes(self) -> int: ...
    @property
    def held_bytes(self) -> int | None: ...


class Needy(Protocol):
    @property
    def need_bytes(self) -> int: ...


N = TypeVar("N", bound=Needy)


def process_memory(pid: int, machine: Machine = THIS_MACHINE) -> ProcessMemory | None:
    """None when there is no such process, or it has ended."""
    fields = machine.fields(f"/proc/{pid}/status")
    kilobytes = {name: value.removesuffix(" kB") for name, value in fields.items() if name.startswith("Rss")}
    if not kilobytes.keys() >= {"RssAnon", "RssFile", "RssShmem"} or not all(map(str.isdecimal, kilobytes.values())):
        return None
    anonymous, mapped, shared = (int(kilobytes[name]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return ProcessMemory(anonymous_bytes=anonymous + shared, mapped_bytes=mapped)


def measured_budget(runners: Iterable[HeldMemory], machine: Machine = THIS_MACHINE) -> Budget | None:
    """What is available now and what our own runners use, less a reserve; None where the kernel does not report it.

    Weights that a CPU engine maps are left out: as page cache they are available anyway."""
    memory = read_memory(machine)
    if memory.available_bytes is None:
        return None
    now = total = memory.available_bytes
    for runner in runners:
        held = runner.held_bytes
        now += held or 0
        total += runner.need_bytes if held is None else held
    # What a driver holds for a runner may not count for the cgroup: its limit stays the most there is.
    most = max(now, total) if memory.limit_bytes is None else memory.limit_bytes
    return Budget(now=_less_reserve(min(now, most)), total=_less_reserve(min(total, most)))


def fewest(candidates: Sequence[N], missing_bytes: int, missing_places: int) -> list[N] | None:
    """The first of `candidates` that together make so much room, without those that are not necessary for it; None
    when all of them are not enough."""
    chosen: list[N] = []
    for candidate in candidates:
        if _enough(chosen, missing_bytes, missing_places):
            break
        chosen.append(candidate)
    if not _enough(chosen, missing_bytes, missing_places):
        return None
    for candidate in reversed(chosen):
        others = [other for other in chosen if other is not candidate]
        if _enough(others, missing_bytes, missing_places):
            chosen = others
    return chosen


def _enough(chosen: Sequence[Needy], missing_bytes: int, missing_places: int) -> bool:
    return sum(candidate.need_bytes for candidate in chosen) >= missing_bytes and len(chosen) >= missing_places


def _less_reserve(total_bytes: int) -> int:
    return max(0, total_bytes - max(int(total_bytes * _RESERVE_FRACTION), _MIN_RESERVE_BYTES))

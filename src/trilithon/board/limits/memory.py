"""The memory of this machine as far as this process may use it."""

from dataclasses import dataclass

from trilithon.board.limits.cgroups import Limits, read_limits
from trilithon.board.sysfs import THIS_MACHINE, Machine, parse_kibibytes

__all__ = ["UsableMemory", "read_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableMemory:
    """None where the kernel does not say. `total_bytes` is what the machine has, `limit_bytes` what cgroups allow of
    it; `available_bytes` can be used without swapping, within all limits. Swap is within its limit, too."""

    total_bytes: int | None
    limit_bytes: int | None
    available_bytes: int | None
    swap_bytes: int | None
    swap_used_bytes: int | None


def read_memory(machine: Machine = THIS_MACHINE, limits: Limits | None = None) -> UsableMemory:
    """`limits` None: read here."""
    limits = limits or read_limits(machine)
    fields = machine.fields("/proc/meminfo")
    total, available, swap, swap_free = (
        parse_kibibytes(fields.get(name)) for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    )
    swap_used = None if swap is None or swap_free is None else max(swap - swap_free, 0)
    if limits.swap_bytes is not None:
        swap = _least(swap, limits.swap_bytes)
        swap_used = _least(swap_used, limits.swap_used_bytes)
    return UsableMemory(
        total_bytes=total,
        limit_bytes=limits.memory_bytes,
        available_bytes=_least(available, limits.memory_available_bytes),
        swap_bytes=swap,
        swap_used_bytes=swap_used,
    )


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)

"""What the kernel says of processes: whether one lives, when it started, and how many it killed for want of memory."""

from dataclasses import dataclass

from trilithon.board.sysfs import THIS_MACHINE, Machine, parse_count

__all__ = ["ProcessState", "oom_kills", "read_process"]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """From /proc/PID/stat. `start_ticks` (since boot) names a process for good together with its number; times are
    in clock ticks, `resident_pages` in pages. `ended` is true for one that only waits to be reaped."""

    ended: bool
    user_ticks: int
    system_ticks: int
    start_ticks: int
    resident_pages: int


def read_process(pid: int, machine: Machine = THIS_MACHINE) -> ProcessState | None:
    """None when there is no such process, or what the kernel says of it is garbled."""
    text = machine.text(f"/proc/{pid}/stat")
    # The second field is the program's name in parentheses, and may itself hold spaces and parentheses. Field N of
    # proc(5) is at N - 3 of what follows it.
    fields = (text or "").rpartition(")")[2].split()
    counts = [parse_count(field) for number, field in enumerate(fields, start=3) if number in (14, 15, 22, 24)]
    known = [count for count in counts if count is not None]
    return ProcessState(fields[0] in ("Z", "X"), *known) if len(known) == 4 else None


def oom_kills(machine: Machine = THIS_MACHINE) -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None where it does not say."""
    return parse_count(machine.fields("/proc/vmstat", None).get("oom_kill"))

"""What the kernel says of processes: whether one lives, when it started, where it listens, and how many it killed for
want of memory."""

import os
from dataclasses import dataclass
from pathlib import Path

from trilithon.board.sysfs import THIS_MACHINE, Machine, parse_count

__all__ = ["ProcessState", "cpu_seconds", "listening_port", "oom_kills", "read_process"]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LISTENING = "0A"  # TCP_LISTEN (include/net/tcp_states.h)


@dataclass(frozen=True, slots=True)
class ProcessState:
    """From /proc/PID/stat. `start_ticks` (since boot) names a process for good together with its number; times are
    in clock ticks, `resident_pages` in pages. `ended` is true for one that only waits to be reaped, `stopped` for one
    that a signal or a debugger holds."""

    ended: bool
    stopped: bool
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
    return ProcessState(fields[0] in ("Z", "X"), fields[0] in ("T", "t"), *known) if len(known) == 4 else None


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads so far; 0 when there is no such process."""
    state = read_process(pid)
    return (state.user_ticks + state.system_ticks) / _TICKS_PER_SECOND if state else 0.0


def oom_kills(machine: Machine = THIS_MACHINE) -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None where it does not say."""
    return parse_count(machine.fields("/proc/vmstat", None).get("oom_kill"))


def listening_port(pid: int) -> int | None:
    """The TCP port (IPv4) on which the process listens, the lowest of several; None where it listens on none, or may
    not be looked at."""
    try:
        files = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it has ended, closed one of them meanwhile, or belongs to another user
        return None
    ports = []
    # "sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode", addresses as "0100007F:1F90" (proc(5)).
    for line in (THIS_MACHINE.text(f"/proc/{pid}/net/tcp") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING and f"socket:[{fields[9]}]" in files:
            ports.append(int(fields[1].rpartition(":")[2], 16))
    return min(ports, default=None)

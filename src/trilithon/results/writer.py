"""Which process writes a campaign, and whether it still lives: a live campaign is not an interrupted one."""

import os

from trilithon.board.sysfs import THIS_MACHINE

__all__ = ["is_alive", "process_number", "this_process"]

_START_TIME = 19  # proc(5): field 22 of /proc/PID/stat; counted from the state, which is field 3
_ENDED = ("Z", "X")


def this_process() -> str:
    """This process in words that no later process shares: boot, number, start time in clock ticks since boot."""
    return _words(os.getpid()) or f"unknown {os.getpid()} 0"


def is_alive(writer: str) -> bool:
    """Whether the process that called itself `writer` runs on this machine now."""
    return bool(writer) and writer == _words(process_number(writer))


def process_number(writer: str) -> int:
    return int(writer.split()[1])


def _words(number: int) -> str | None:
    stat = THIS_MACHINE.text(f"/proc/{number}/stat")
    if stat is None:
        return None
    # The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[0] in _ENDED:
        return None
    boot = THIS_MACHINE.text("/proc/sys/kernel/random/boot_id") or "unknown"
    return f"{boot} {number} {fields[_START_TIME]}"

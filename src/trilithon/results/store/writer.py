"""Which process writes a campaign, and whether it still lives: a live campaign is not an interrupted one."""

import os

from trilithon.board.processes import read_process
from trilithon.board.sysfs import THIS_MACHINE

__all__ = ["is_alive", "process_number", "this_process"]


def this_process() -> str:
    """This process in words that no later process shares: boot, number, start time in clock ticks since boot."""
    return _words(os.getpid()) or f"unknown {os.getpid()} 0"


def is_alive(writer: str) -> bool:
    """Whether the process that called itself `writer` runs on this machine now."""
    return bool(writer) and writer == _words(process_number(writer))


def process_number(writer: str) -> int:
    return int(writer.split()[1])


def _words(number: int) -> str | None:
    state = read_process(number)
    if state is None or state.ended:
        return None
    boot = THIS_MACHINE.text("/proc/sys/kernel/random/boot_id") or "unknown"
    return f"{boot} {number} {state.start_ticks}"

"""Findings about memory, swap and disks."""

import shlex
from collections.abc import Iterator

from trilithon.board.finding import UNTIL_BOOT, Finding, Rule
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine
from trilithon.language import Message
from trilithon.units import format_bytes

__all__ = ["RULES"]

# Pages that a desktop left in swap long ago are no fault; more than this was needed by something.
_SWAP_BYTES = 64 * 2**20
# What a 1B model takes at 4 bits, with its cache.
_LITTLE_MEMORY_BYTES = 2**30
# A 1B model at 8 bits, or a 3B model at 4, has to be kept as a file.
_LITTLE_DISK_BYTES = 2 * 2**30

_LARGEST_PROGRAMS = Message("ps -eo rss,comm --sort=-rss | head  # and close what is not needed")


def _swap(board: Board, machine: Machine) -> Iterator[Finding]:
    used, available = board.swap_used_bytes, board.memory_available_bytes
    if used is None or used < _SWAP_BYTES:
        return
    fits = available is not None and available - used > _LITTLE_MEMORY_BYTES
    fix = _emptied(board) if fits else _LARGEST_PROGRAMS
    message = Message("{size} are in swap; reading them back slows a run", size=format_bytes(used))
    yield Finding("swap-used", "warning", "swap", message, fix, look=not fits)


def _emptied(board: Board) -> str:
    """By name: `swapon -a` brings back what /etc/fstab lists, and so no zram that a service has set up."""
    names = [shlex.quote(swap.path) for swap in board.swaps if swap.used_bytes] or ["-a"]
    return " && ".join(f"sudo swapoff {name} && sudo swapon {name}" for name in names)


def _slow_swap(board: Board, machine: Machine) -> Iterator[Finding]:
    for swap in board.swaps:
        if swap.kind == "SD card":
            message = Message(
                "{path} is on an SD card: a model that spills into it all but stands still", path=swap.path
            )
            fix = Message(
                "sudo swapoff {path}  # compressed memory instead: sudo apt install zram-tools",
                path=shlex.quote(swap.path),
            )
            yield Finding("swap-slow", "warning", "swap", message, fix, until=UNTIL_BOOT)


def _memory(board: Board, machine: Machine) -> Iterator[Finding]:
    available = board.memory_available_bytes
    limited = board.limits.memory_available_bytes == available  # told by its own finding, with another fix
    if available is not None and available < _LITTLE_MEMORY_BYTES and not limited:
        message = Message(
            "{size} available; a 1B model at 4 bits takes about {needed} GiB",
            size=format_bytes(available),
            needed=_LITTLE_MEMORY_BYTES >> 30,
        )
        yield Finding("memory-low", "warning", "memory", message, _LARGEST_PROGRAMS, look=True)


def _disk(board: Board, machine: Machine) -> Iterator[Finding]:
    told = set()
    for disk in board.disks:
        if disk.free_bytes is not None and disk.free_bytes < _LITTLE_DISK_BYTES and disk.free_bytes not in told:
            told.add(disk.free_bytes)  # both folders are mostly on one disk
            message = Message(
                "{size} free for {folder}; models and results are kept there",
                size=format_bytes(disk.free_bytes),
                folder=disk.folder,
            )
            fix = Message(
                "du -xh --max-depth=3 ~ | sort -h | tail  # and delete, or name another disk in TRILITHON_DATA"
            )
            yield Finding("disk-low", "warning", "disk", message, fix)


RULES: tuple[Rule, ...] = (_swap, _slow_swap, _memory, _disk)

"""Processes as the kernel shows them. One may end while it is being read: that is an answer too, not an error."""

import contextlib
import os
import time
from pathlib import Path

__all__ = ["children_of", "descendants_of", "goes", "is_gone", "living_children", "started_here"]

# What this process starts inherits it, also what a child of it starts and leaves behind.
_NAME, _VALUE = "STARTED_BY_TESTS", f"{os.getpid()}-{time.monotonic_ns()}"
os.environ[_NAME] = _VALUE

# A zombie; one that the kernel is taking away; none at all.
_OVER = ("Z", "X", "")


def is_gone(pid: int) -> bool:
    """Also when only its parent's waiting is left."""
    return _state_and_parent(pid)[0] in _OVER


def goes(pid: int, seconds: float = 60.0) -> bool:
    """Whether it is gone within that time, which is long: a busy machine is no failure."""
    deadline = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_gone(pid)


def children_of(pid: int) -> set[int]:
    """Zombies too. The kernel's own list of them (/proc/PID/task/TID/children) may leave some out."""
    numbers = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return {number for number in numbers if _state_and_parent(number)[1] == pid}


def living_children() -> set[int]:
    """This process's own."""
    return {pid for pid in children_of(os.getpid()) if not is_gone(pid)}


def descendants_of(pid: int) -> set[int]:
    own = children_of(pid)
    return own.union(*map(descendants_of, own))


def started_here() -> dict[int, str]:
    """What this process started and what that started, as far as it lives: the number and the command line of each.
    Left out is what `multiprocessing` keeps for as long as the process that uses it lives."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            is_marked = f"{_NAME}={_VALUE}".encode() in (folder / "environ").read_bytes().split(b"\0")
            state, parent = _state_and_parent(pid)
            if (is_marked or parent == os.getpid()) and state not in _OVER:
                found[pid] = " ".join((folder / "cmdline").read_bytes().decode(errors="replace").split("\0"))
    return {pid: command for pid, command in found.items() if "multiprocessing.resource_tracker" not in command}


def _state_and_parent(pid: int) -> tuple[str, int]:
    with contextlib.suppress(OSError):
        # The name before it, in parentheses, may hold anything.
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "", -1

"""One NPU, one tenant: a lock for the whole machine around every piece of work on it (docs/npu.md).

Two processes that compute on it at once have frozen whole systems; loaded models may lie beside each other idle.
"""

import asyncio
import contextlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from trilithon.board.accelerators import read_npu
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.errors import RunError, UserError
from trilithon.files import try_lock

__all__ = ["NpuLock", "lock_path", "other_npu_users"]

WAIT_SECONDS = 600.0  # a long prompt of another program takes minutes on these boards
_VARIABLE = "TRILITHON_NPU_LOCK"
# The first one that every user may write to, so that all come to the same answer.
_FOLDERS = (Path("/run/lock"), Path("/tmp"))
_NAME = "rknpu.lock"
# Whoever is next holds this one beside it and waits for the lock itself: a tenant who leaves and comes back at once
# finds it taken, and cannot overtake.
_NEXT = ".next"
# The longer somebody waits, the more seldom he looks, up to these; only who is next looks often. A turn that is shorter
# than the pause of those who wait could be followed by another one of the same tenant.
_PAUSE_SECONDS, _QUEUE_PAUSE_SECONDS = 0.005, 0.025
_SHORTEST_PAUSE_SECONDS, _PAUSE_FRACTION = 0.002, 0.1
_TELL_SECONDS = 1.0
_FLOCK = re.compile(r"^\d+: FLOCK\s+ADVISORY\s+WRITE (\d+) \S+:(\d+) ", re.MULTILINE)


def lock_path() -> Path:
    """Where all programs of this machine that share its NPU look."""
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    shared = (folder for folder in _FOLDERS if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH)
    return next(shared, _FOLDERS[-1]) / _NAME


class NpuLock:
    """The turns of one child, whose name for other people is `name`. Its own requests may overlap: only other
    processes are kept out. `waiting` is told about once a second for whom it waits."""

    def __init__(
        self,
        name: str,
        *,
        limit_seconds: float = WAIT_SECONDS,
        waiting: Callable[[str], None] | None = None,
        path: Path | None = None,
    ):
        self._name = name
        self._limit_seconds = limit_seconds
        self._waiting = waiting
        self._path = path or lock_path()
        self._turns = 0
        self._lock = -1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the NPU. Raises RunError, naming the holder, when it is not free within the limit; cancelled while it
        waits, it leaves the queue."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        deadline = time.monotonic() + self._limit_seconds
        queue = await self._locked(self._path.with_name(self._path.name + _NEXT), deadline, _QUEUE_PAUSE_SECONDS)
        try:
            if self._turns == 0:
                self._lock = await self._locked(self._path, deadline, _PAUSE_SECONDS)
                _write(self._lock, f"{os.getpid()} trilithon: {self._name}\n")
            self._turns += 1
        finally:
            os.close(queue)

    def _leave(self) -> None:
        self._turns -= 1
        if self._turns == 0:
            _write(self._lock, "")
            os.close(self._lock)

    async def _locked(self, path: Path, deadline: float, longest_pause_seconds: float) -> int:
        """A descriptor that holds the lock of `path`, the caller's to close."""
        began = told = time.monotonic()
        while True:
            with contextlib.ExitStack() as stack:
                descriptor = _open(path)
                stack.callback(os.close, descriptor)
                while not try_lock(descriptor):
                    now = time.monotonic()
                    if now >= deadline:
                        raise self._in_use()
                    if self._waiting and now - told >= _TELL_SECONDS:
                        self._waiting(f"{self._name}: waiting for the NPU, which {_holder(self._path)} has")
                        told = now
                    pause = max(_SHORTEST_PAUSE_SECONDS, (now - began) * _PAUSE_FRACTION)
                    await asyncio.sleep(min(pause, longest_pause_seconds))
                if _is_at(descriptor, path):  # and was not removed meanwhile, so that others lock another file
                    stack.pop_all()
                    return descriptor

    def _in_use(self) -> RunError:
        fix = "end that program, or wait until it is done"
        waited = f"also after {self._limit_seconds:g} s of waiting"
        return RunError(
            f"{self._name}: {_holder(self._path)} has the NPU, {waited}; {fix}", cause="NPU in use", advice=fix
        )


def other_npu_users(machine: Machine = THIS_MACHINE) -> tuple[str, ...]:
    """Other processes that have the NPU's device open, one line each: they may not wait for their turn. Those of other
    users show only to root. The display's server may open any card, so that only the NPU's own node counts."""
    npu = read_npu(machine, None)
    nodes = {Path(node.path).name for node in npu.nodes} if npu else set()
    nodes = {name for name in nodes if name.startswith(("renderD", "rknpu", "accel"))}
    npu_users: dict[str, str] = {}
    for entry in machine.glob("/proc/[0-9]*/fd/*") if nodes else ():
        process = entry.split("/")[2]
        if process not in npu_users and machine.link(entry) in nodes and not _is_ours(process, machine):
            npu_users[process] = machine.text(f"/proc/{process}/comm") or "unknown"
    return tuple(f"process {process} ({name}) has the NPU open too" for process, name in npu_users.items())


def _is_ours(process: str, machine: Machine) -> bool:
    return process == str(os.getpid()) or machine.fields(f"/proc/{process}/status").get("PPid") == str(os.getpid())


def _open(path: Path) -> int:
    """Any user may lock the file, and write into it where its maker let them. O_CREAT alone is refused for a file of
    another user's in a sticky folder (fs.protected_regular)."""
    error: OSError | None = None
    for access in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY):
        try:
            descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as caught:
            error = caught
            continue
        if access & os.O_CREAT:
            os.fchmod(descriptor, 0o666)  # whatever the umask
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise UserError(f"the NPU's lock {path} is no file; remove it, or name another one with {_VARIABLE}")
    assert error is not None
    raise UserError(f"the NPU's lock {path} cannot be opened: {error.strerror}; name another one with {_VARIABLE}")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(descriptor: int, text: str) -> None:
    """Who holds it, for people. Where the file is another user's and closed to us, the kernel's list has to do."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(path: Path, machine: Machine = THIS_MACHINE) -> str:
    """In words. The kernel's list of locks has the last word: what stands in the file may be a dead one's."""
    try:
        written, inode = path.read_text(encoding="utf-8", errors="replace").strip(), path.stat().st_ino
    except OSError:
        return "another program"
    held = (match[1] for match in _FLOCK.finditer(machine.text("/proc/locks") or "") if int(match[2]) == inode)
    process, _, words = written.partition(" ")
    number = next(held, process)
    if not number:
        return "another program"
    name = words if number == process else machine.text(f"/proc/{number}/comm")
    return f"process {number} ({name or 'unknown'})"

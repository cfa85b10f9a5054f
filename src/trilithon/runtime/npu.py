"""An exclusive lock on the NPU for the whole machine, held around all work on it (docs/npu.md).

Two processes that compute on an NPU at once have frozen whole systems. Models of several may be loaded while idle."""

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
# The first one that every user may write to, so that all programs choose the same.
_FOLDERS = (Path("/run/lock"), Path("/tmp"))
_NAME = "rknpu.lock"
# The next process in the queue holds this second lock while it waits for the first one, so that a process that releases
# the lock and takes it again at once cannot overtake.
_NEXT = ".next"
# Pauses between attempts grow with the time waited, up to these; the next process in the queue tries more often. A
# process that uses the NPU for less than such a pause could otherwise take it twice in a row.
_MAX_PAUSE_SECONDS, _MAX_QUEUE_PAUSE_SECONDS = 0.005, 0.025
_MIN_PAUSE_SECONDS, _PAUSE_FRACTION = 0.002, 0.1
_TELL_SECONDS = 1.0
_FLOCK = re.compile(r"^\d+: FLOCK\s+ADVISORY\s+WRITE (\d+) \S+:(\d+) ", re.MULTILINE)


def lock_path() -> Path:
    """The same for all programs on this machine."""
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    shared = (folder for folder in _FOLDERS if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH)
    return next(shared, _FOLDERS[-1]) / _NAME


class NpuLock:
    """The lock for the requests of one child, whose name is `name`. They may overlap; only other processes are
    excluded. `tell` gets a line about once a second while it waits."""

    def __init__(
        self,
        name: str,
        *,
        limit_seconds: float = WAIT_SECONDS,
        tell: Callable[[str], None] | None = None,
        path: Path | None = None,
    ):
        self._name = name
        self._limit_seconds = limit_seconds
        self._tell = tell
        self._path = path or lock_path()
        self._users = 0
        self._lock = -1

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock. Raises RunError, which names its holder, when it is not free within the limit. When this is
        cancelled while it waits, it leaves the queue."""
        await self._acquire()
        try:
            yield
        finally:
            self._release()

    async def _acquire(self) -> None:
        deadline = time.monotonic() + self._limit_seconds
        queue = await self._locked(self._path.with_name(self._path.name + _NEXT), deadline, _MAX_QUEUE_PAUSE_SECONDS)
        try:
            if self._users == 0:
                self._lock = await self._locked(self._path, deadline, _MAX_PAUSE_SECONDS)
                _write(self._lock, f"{os.getpid()} trilithon: {self._name}\n")
            self._users += 1
        finally:
            os.close(queue)

    def _release(self) -> None:
        self._users -= 1
        if self._users == 0:
            _write(self._lock, "")
            os.close(self._lock)

    async def _locked(self, path: Path, deadline: float, max_pause_seconds: float) -> int:
        """A descriptor that holds the lock on `path`. The caller closes it."""
        began = told_at = time.monotonic()
        while True:
            with contextlib.ExitStack() as stack:
                descriptor = _open(path)
                stack.callback(os.close, descriptor)
                while not try_lock(descriptor):
                    now = time.monotonic()
                    if now >= deadline:
                        raise self._in_use()
                    if self._tell and now - told_at >= _TELL_SECONDS:
                        self._tell(f"{self._name}: waiting for the NPU, which {_holder(self._path)} uses")
                        told_at = now
                    pause = max(_MIN_PAUSE_SECONDS, (now - began) * _PAUSE_FRACTION)
                    await asyncio.sleep(min(pause, max_pause_seconds))
                if _is_at(descriptor, path):  # and was not removed meanwhile: others would lock another file
                    stack.pop_all()
                    return descriptor

    def _in_use(self) -> RunError:
        fix = "end that program, or wait until it is done"
        message = f"{self._name}: {_holder(self._path)} still uses the NPU after {self._limit_seconds:g} s; {fix}"
        return RunError(message, cause="NPU in use", advice=fix)


def other_npu_users(machine: Machine = THIS_MACHINE) -> tuple[str, ...]:
    """Other processes that have the NPU's device open, one line each: they may not use the lock. Those of other users
    are visible only to root. A display server may open any card, so only the NPU's own node counts."""
    npu = read_npu(machine, None)
    nodes = {Path(node.path).name for node in npu.nodes} if npu else set()
    nodes = {name for name in nodes if name.startswith(("renderD", "rknpu", "accel"))}
    users: dict[str, str] = {}
    for entry in machine.glob("/proc/[0-9]*/fd/*") if nodes else ():
        process = entry.split("/")[2]
        if process not in users and machine.link(entry) in nodes and not _is_ours(process, machine):
            users[process] = machine.text(f"/proc/{process}/comm") or "unknown"
    return tuple(f"process {process} ({name}) also has the NPU open" for process, name in users.items())


def _is_ours(process: str, machine: Machine) -> bool:
    return process == str(os.getpid()) or machine.fields(f"/proc/{process}/status").get("PPid") == str(os.getpid())


def _open(path: Path) -> int:
    """Any user may lock the file, and write to it where its owner permits that. O_CREAT is refused for a file of
    another user in a sticky folder (fs.protected_regular)."""
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
        raise UserError(f"the NPU lock {path} is not a file; remove it, or name another one with {_VARIABLE}")
    assert error is not None
    raise UserError(f"the NPU lock {path} cannot be opened: {error.strerror}; name another one with {_VARIABLE}")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(descriptor: int, text: str) -> None:
    """The holder, for error messages. Where the file cannot be written, the kernel's list of locks is used."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(path: Path, machine: Machine = THIS_MACHINE) -> str:
    """The process that holds the lock, by the kernel's list of locks: the file may name one that has died."""
    try:
        written, inode = path.read_text(encoding="utf-8", errors="replace").strip(), path.stat().st_ino
    except OSError:
        return "another program"
    holders = (match[1] for match in _FLOCK.finditer(machine.text("/proc/locks") or "") if int(match[2]) == inode)
    process, _, description = written.partition(" ")
    number = next(holders, process)
    if not number:
        return "another program"
    name = description if number == process else machine.text(f"/proc/{number}/comm")
    return f"process {number} ({name or 'unknown'})"

"""A child process that dies when it should: with its parent, with its group, and with its cause known.

It writes straight into its log file, so no pipe can fill up and the log survives our own death.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from trilithon.board.processes import oom_kills, read_process
from trilithon.engines.base import Launch
from trilithon.engines.wire import guard
from trilithon.errors import EngineTimeout, StartError, UserError
from trilithon.files import try_lock
from trilithon.runtime.diagnostics import Diagnosis, diagnose

__all__ = ["Process", "keep_to_cpus", "workspace"]

_TAIL_BYTES = 1 << 16
# After SIGKILL only the kernel can hold a process back (a driver that never returns).
_KILL_SECONDS = 10.0

# A Unix socket's path has 108 bytes with the final zero; this much is left for names inside a workspace.
_SOCKET_PATH_BYTES = 107
_ROOM_BYTES = 32
_FOLDER = re.compile(r"trilithon-(\d+)-(\d+)-\w+")
_FOLDER_BYTES = len("/trilithon-4194304-999999999999-abcdefgh")

# What this process had before it kept itself to some: a child would inherit those few.
_left_to_children: frozenset[int] = frozenset()


class Process:
    """A launch that runs in a process group of its own. `started_ns` is monotonic, from just before its start.

    Await `wait` or `stop` once it is no longer needed: both also end what it may have left in its group. The child
    is bound to the thread that started it (see `children.guard`): use a thread that lives as long.
    """

    def __init__(self, child: asyncio.subprocess.Process, log: Path, log_start: int, started_ns: int):
        self.pid = child.pid
        self.started_ns = started_ns
        self._child = child
        self._log = log
        self._log_start = log_start
        self._sent: set[int] = set()
        self._group_ended = False
        self._oom_kills_before = oom_kills()
        self._oom_kills_after: int | None = None

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> "Process":
        """Start it, with both its outputs appended to `log`. That the program exists shows only in its end: exit
        code 127. Raises StartError when no process or log can be made."""
        try:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                log_start = os.fstat(stream).st_size
                started_ns = time.monotonic_ns()
                child = await asyncio.create_subprocess_exec(
                    *_guarded(launch),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=_environment(launch),
                    start_new_session=True,
                )
            finally:
                os.close(stream)
        except OSError as error:
            raise StartError(f"no child could be started with the log {log}: {error.strerror}") from error
        return cls(child, log, log_start, started_ns)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._child.returncode

    async def wait(self) -> int:
        """Its return code, negative for a signal."""
        returncode = await self._child.wait()
        if not self._group_ended:
            # At once and only once: later the group's number may belong to somebody else.
            self._group_ended = True
            self._oom_kills_after = oom_kills()
            self._signal_group(signal.SIGKILL)
        return returncode

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End it and its whole group: ask, wait, kill. Raises Hung when the kernel does not let go of it."""
        try:
            if not self._has_ended():
                self._send(signal.SIGTERM)
                async with asyncio.timeout(grace_seconds):
                    await self.wait()
        except TimeoutError:
            pass  # it had its chance
        finally:  # also when this wait is cancelled
            if not self._has_ended():
                self._send(signal.SIGKILL)
            await self._gone()

    async def _gone(self) -> None:
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await self.wait()
        except TimeoutError:
            raise EngineTimeout(
                f"process {self.pid} does not end: a driver holds it in the kernel; restart the board"
            ) from None

    def diagnose(self) -> Diagnosis:
        """Why it ended; while it runs, what its log tells so far."""
        returncode = self.returncode
        asked = bool(self._sent) and (returncode is None or returncode >= 0 or -returncode in self._sent)
        return diagnose(
            returncode,
            self._log_tail(),
            killed_by_us=asked,
            oom_kills_before=self._oom_kills_before,
            oom_kills_after=self._oom_kills_after,
        )

    def _has_ended(self) -> bool:
        """Whether it has, also when asyncio has not heard of it yet: a crash just before our stop is a crash."""
        if self.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # asyncio's watcher has collected it and is about to say so
            return True

    def _send(self, number: signal.Signals) -> None:
        self._sent.add(number)
        self._signal_group(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self.pid, number)

    def _log_tail(self) -> str:
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode(errors="replace")
        except FileNotFoundError:  # removed with its folder
            return ""


def keep_to_cpus(cpus: Iterable[int]) -> None:
    """This thread, and those that it starts from now on, work on these CPUs alone. Children whose launch names no CPUs
    get all those that it had before."""
    global _left_to_children
    _left_to_children = _left_to_children or frozenset(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus)


def _guarded(launch: Launch) -> list[str]:
    # By its path, isolated and without site-packages: 17 ms instead of 26 (see the guard).
    words = [sys.executable, "-I", "-S", guard.__file__, "--parent", str(os.getpid())]
    if cpus := launch.cpus or sorted(_left_to_children):
        words += ["--cpus", ",".join(str(cpu) for cpu in cpus)]
    if launch.open_files:
        words += ["--open-files", str(launch.open_files)]
    return [*words, "--", *launch.argv]


def _environment(launch: Launch) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(launch.hidden)}
    return ours | dict(launch.environment)


@contextlib.contextmanager
def workspace(base: Path | None = None) -> Iterator[Path]:
    """A private folder for sockets and logs whose path is short enough for sockets; it goes at the end. `base` is
    where to make it, else a place is chosen.

    Also removes those that killed processes of this user have left. Raises UserError when there is no place for it.
    """
    base = base or _base()
    _sweep(base)
    prefix = f"trilithon-{os.getpid()}-{_start_ticks(os.getpid())}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    except OSError as error:
        raise UserError(f"{base}: {error.strerror}; make room, or set TMPDIR to another folder") from error
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(lock)  # nobody else knows the folder yet
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what resists is left to the next sweep
        os.close(lock)


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Under sudo the variable may still name another user's folder.
    mine = [Path(runtime)] if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == os.getuid() else []
    for base in (*mine, Path(tempfile.gettempdir()), Path("/tmp")):
        short = len(os.fsencode(base)) + _FOLDER_BYTES + _ROOM_BYTES <= _SOCKET_PATH_BYTES
        if short and base.is_absolute() and base.is_dir() and os.access(base, os.W_OK | os.X_OK):
            return base
    raise UserError("no folder for sockets: set TMPDIR to a short path that you can write to")


def _sweep(base: Path) -> None:
    for folder in base.glob("trilithon-*"):
        match = _FOLDER.fullmatch(folder.name)
        if match and _start_ticks(int(match[1])) != int(match[2]):
            _remove_unless_held(folder)


def _remove_unless_held(folder: Path) -> None:
    """Its owner's pid is unknown here, but the owner may live in another PID namespace (a container): its lock
    tells. Only our own folders are looked at, and never through a link."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # another user's, or gone meanwhile
        return
    try:
        if os.fstat(lock).st_uid == os.getuid() and try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)  # what resists must not hinder this start
    finally:
        os.close(lock)


def _start_ticks(pid: int) -> int | None:
    state = read_process(pid)
    return state.start_ticks if state else None

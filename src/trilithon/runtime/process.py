"""A child process that ends with its parent and with its process group, and whose cause of death is known.

It writes directly to its log file, so no pipe can fill up and the log survives the parent."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trilithon.board.processes import oom_kills, read_process
from trilithon.board.sysfs import THIS_MACHINE, parse_kibibytes
from trilithon.engines.base import Launch
from trilithon.engines.wire import guard
from trilithon.errors import EngineTimeout, StartError, UserError
from trilithon.files import try_lock
from trilithon.runtime.diagnostics import Diagnosis, diagnose
from trilithon.runtime.kernel_log import KernelLog
from trilithon.units import format_bytes

__all__ = ["Process", "keep_to_cpus", "workspace"]

_TAIL_BYTES = 1 << 16
_LIMIT_ADVICE = (
    "that is its limit, by the size of the model and its settings: choose a smaller quantization or a shorter context; "
    "if the model is to have more, set engine_memory in config.toml"
)
# After SIGKILL, only a driver that never returns keeps a process alive.
_KILL_SECONDS = 10.0

# The path of a Unix socket has 108 bytes with the final zero; `_NAME_BYTES` are for names inside a workspace.
_SOCKET_PATH_BYTES = 107
_NAME_BYTES = 32
_FOLDER = re.compile(r"trilithon-(\d+)-(\d+)-\w+")
_FOLDER_BYTES = len("/trilithon-4194304-999999999999-abcdefgh")

# The CPUs of this process before `keep_to_cpus`: children would inherit the few that are left.
_cpus_for_children: frozenset[int] = frozenset()


class Process:
    """A child in a process group of its own. `started_ns` is monotonic, just before its start.

    Await `wait` or `stop` when it is no longer needed: both also end the rest of its process group. The child ends with
    the thread that started it (see `engines.wire.guard`), so that thread must live as long."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        log: Path,
        log_start: int,
        started_ns: int,
        memory_bytes: int | None = None,
    ):
        self.pid = child.pid
        self.started_ns = started_ns
        self._child = child
        self._log = log
        self._log_start = log_start
        self._memory_bytes = memory_bytes
        self._sent: set[int] = set()
        self._group_ended = False
        self._oom_kills_before = oom_kills()
        self._oom_kills_after: int | None = None
        self._kernel = KernelLog()

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> "Process":
        """Start it; stdout and stderr are appended to `log`. A missing program is exit code 127. Raises StartError when
        the process or the log cannot be created."""
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
            raise StartError(f"the child with the log {log} cannot be started: {error.strerror}") from error
        return cls(child, log, log_start, started_ns, launch.memory_bytes)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._child.returncode

    async def wait(self) -> int:
        """Its return code, negative for a signal."""
        returncode = await self._child.wait()
        if not self._group_ended:
            # Only once, and at once: later, the number of the group may be reused.
            self._group_ended = True
            self._oom_kills_after = oom_kills()
            self._kernel.close()
            self._signal_group(signal.SIGKILL)
        return returncode

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End it and its process group: SIGTERM, wait, SIGKILL. Raises EngineTimeout when it survives that."""
        try:
            if not self._has_ended():
                self._send(signal.SIGTERM)
                async with asyncio.timeout(grace_seconds):
                    await self.wait()
        except TimeoutError:
            pass  # it is killed below
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

    def limit_memory(self, spare_bytes: int) -> None:
        """From now on it may allocate so many bytes more than it has, as far as its hard limit allows."""
        present_bytes = parse_kibibytes(THIS_MACHINE.fields(f"/proc/{self.pid}/status").get("VmData"))
        if present_bytes is None:  # it has ended
            return
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            most = present_bytes + spare_bytes
            self._memory_bytes = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (self._memory_bytes, hard))

    def diagnose(self) -> Diagnosis:
        """Why it ended; while it runs, what its log shows so far."""
        returncode = self.returncode
        killed_by_us = bool(self._sent) and (returncode is None or returncode >= 0 or -returncode in self._sent)
        diagnosis = diagnose(
            returncode,
            self._log_tail(),
            killed_by_us=killed_by_us,
            oom_kills_before=self._oom_kills_before,
            oom_kills_after=self._oom_kills_after,
        )
        if self._memory_bytes and diagnosis.own_memory:
            cause = f"needs more than {format_bytes(self._memory_bytes)} of memory"
            diagnosis = replace(diagnosis, cause=cause, advice=_LIMIT_ADVICE)
        return diagnosis if killed_by_us or returncode == 0 else self._kernel.explained(diagnosis, self.pid)

    def _has_ended(self) -> bool:
        """Also when asyncio has not noticed yet: a crash just before a stop is a crash."""
        if self.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # asyncio's watcher has collected it and will report it
            return True

    def _send(self, number: signal.Signals) -> None:
        self._sent.add(number)
        self._signal_group(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the group is empty
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
    """This thread, and threads that it starts later, run only on these CPUs. Children whose launch names no CPUs get
    the CPUs that it had before."""
    global _cpus_for_children
    _cpus_for_children = _cpus_for_children or frozenset(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus)


def _guarded(launch: Launch) -> list[str]:
    # By its path, isolated and without site-packages: 17 ms instead of 26 ms.
    arguments = [sys.executable, "-I", "-S", guard.__file__, "--parent", str(os.getpid())]
    if cpus := launch.cpus or sorted(_cpus_for_children):
        arguments += ["--cpus", ",".join(str(cpu) for cpu in cpus)]
    if launch.open_files:
        arguments += ["--open-files", str(launch.open_files)]
    if launch.memory_bytes:
        arguments += ["--memory", str(launch.memory_bytes)]
    if launch.cpu_seconds:
        arguments += ["--cpu-seconds", str(launch.cpu_seconds)]
    return [*arguments, "--", *launch.argv]


def _environment(launch: Launch) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(launch.hidden)}
    return ours | dict(launch.environment)


@contextlib.contextmanager
def workspace(base: Path | None = None) -> Iterator[Path]:
    """A private folder for sockets and logs, with a path short enough for sockets, in `base` or in a folder that is
    chosen. It is removed at the end; those of killed processes of this user are removed at the start. Raises UserError
    when no folder is suitable."""
    base = base or _base()
    _sweep(base)
    prefix = f"trilithon-{os.getpid()}-{_start_ticks(os.getpid())}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    except OSError as error:
        raise UserError(f"{base}: {error.strerror}; free some space, or set TMPDIR to another folder") from error
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(lock)  # no other process knows the folder yet
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the rest is removed by a later workspace
        os.close(lock)


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Under sudo the variable may still name another user's folder.
    is_own = runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == os.getuid()
    for base in (*([Path(runtime)] if runtime and is_own else []), Path(tempfile.gettempdir()), Path("/tmp")):
        short = len(os.fsencode(base)) + _FOLDER_BYTES + _NAME_BYTES <= _SOCKET_PATH_BYTES
        if short and base.is_absolute() and base.is_dir() and os.access(base, os.W_OK | os.X_OK):
            return base
    raise UserError("no folder is suitable for sockets; set TMPDIR to a short path that you can write to")


def _sweep(base: Path) -> None:
    for folder in base.glob("trilithon-*"):
        match = _FOLDER.fullmatch(folder.name)
        if match and _start_ticks(int(match[1])) != int(match[2]):
            _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    """No process here has the owner's pid, but the owner may run in another PID namespace (a container), so its lock
    decides. Only this user's folders are removed, and links are not followed."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # of another user, or removed meanwhile
        return
    try:
        if os.fstat(lock).st_uid == os.getuid() and try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)  # the rest does not matter
    finally:
        os.close(lock)


def _start_ticks(pid: int) -> int | None:
    state = read_process(pid)
    return state.start_ticks if state else None

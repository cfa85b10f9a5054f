"""Runs before every engine: ends it with its parent, pins it to CPUs, sets limits, and then executes the engine.

    python -m trilithon.engines.wire.guard --parent PID [--cpus 0,1,4-7] [--open-files N] [--memory BYTES]
        [--cpu-seconds N] -- ARGV...

It is a program and not subprocess's `preexec_fn`, because that runs Python between fork and exec: in a parent with
threads it can deadlock on a lock of another thread. It imports as little as possible."""

# It adds about 17 ms to every cold start as runtime.process runs it (by path, python -I -S) and 26 ms as a module:
# medians of 25 on two x86-64 cores. This is the same for every placement.

import ctypes
import os
import resource
import sys
from collections.abc import Sequence

__all__ = ["CANNOT_EXECUTE", "NOT_FOUND", "NOT_PREPARED", "main"]

# The exit codes of env and the shell, with the same meaning.
NOT_PREPARED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

_USAGE = "usage: --parent PID [--cpus 0,1,4-7] [--open-files N] [--memory BYTES] [--cpu-seconds N] -- ARGV..."
_OPTIONS = {"--parent", "--cpus", "--open-files", "--memory", "--cpu-seconds"}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# asm-generic/signal.h; the signal module would cost 5 ms (it imports enum).
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25
_OOM_SCORE = 500  # of 1000
_MOST_CPUS = 8192  # CONFIG_NR_CPUS of the largest kernels; the kernel ignores those that do not exist


class _GuardError(Exception):
    """A request that cannot be met; the message is one line."""


def main(arguments: Sequence[str]) -> int:
    """Executes ARGV; returns an exit code only when that is impossible."""
    try:
        options, argv = _parse(arguments)
        _end_with(_integer(options["--parent"]))
        if "--cpus" in options:
            _pin(_cpus(options["--cpus"]))
        if "--open-files" in options:
            _allow_open_files(_integer(options["--open-files"]))
        # Not RLIMIT_AS: it counts mapped weights too, which the kernel can drop. RLIMIT_DATA counts private writable
        # memory, since Linux 4.7. The soft limit alone: the parent lowers it when it knows what the engine takes.
        for option, kind in (("--memory", resource.RLIMIT_DATA), ("--cpu-seconds", resource.RLIMIT_CPU)):
            if option in options:
                _limit(kind, _integer(options[option]))
        # A core dump of a process that maps gigabytes would keep the board busy for minutes.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _prefer_for_oom_kill()
    except _GuardError as error:
        _print(str(error))
        return NOT_PREPARED
    return _execute(argv)


def _parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    # Without argparse, which would double the start time.
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    options, argv = dict(zip(words[:split:2], words[1:split:2], strict=False)), words[split + 1 :]
    if split % 2 or not options.keys() <= _OPTIONS or "--parent" not in options or not argv:
        raise _GuardError(_USAGE)
    return options, argv


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise _GuardError(f"{text!r} is not a number; {_USAGE}")
    return int(text)


def _cpus(text: str) -> set[int]:
    """ "0,1,4-7" as CPU numbers."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.update(range(_integer(first), _integer(last or first) + 1))
    if not numbers:
        raise _GuardError(f"--cpus {text} names no CPU; {_USAGE}")
    return numbers


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends; that survives exec.

    For the kernel the parent is the *thread* that started this process. A set-user-id program clears the setting."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL)) != 0:
        raise _GuardError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before prctl, so there will be no signal
        raise _GuardError(f"the parent {parent} has ended")


def _pin(cpus: set[int]) -> None:
    # The parent may be pinned to other CPUs: what matters is what the user and the cpuset may use.
    os.sched_setaffinity(0, range(_MOST_CPUS))
    allowed = os.sched_getaffinity(0)
    # The kernel would silently ignore CPUs that are missing, and a measurement must run on the CPUs that it states.
    if missing := cpus - allowed:
        raise _GuardError(f"CPUs {_listed(missing)} are not available here; available are {_listed(allowed)}")
    os.sched_setaffinity(0, cpus)


def _listed(cpus: set[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus)) or "none"


def _allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < count:
        _print(f"note: {limit} open files allowed, {count} needed; raise the hard limit (systemd: LimitNOFILE={count})")


def _limit(kind: int, most: int) -> None:
    """Never above a limit that is set already."""
    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(kind, (most, hard))


def _prefer_for_oom_kill() -> None:
    # When memory runs out, the kernel should kill the engine, and not the server or campaign that reports it.
    path = "/proc/self/oom_score_adj"
    try:
        with open(path, "r+", encoding="ascii") as file:  # noqa: PTH123 (pathlib is too heavy here)
            if int(file.read()) < _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    except OSError as error:  # a container may forbid it; the engine runs without
        _print(f"note: {path}: {error.strerror}")


def _execute(argv: list[str]) -> int:
    # Python ignores these signals, and the engine would inherit that.
    libc = ctypes.CDLL(None)
    for ignored in (_SIGPIPE, _SIGXFSZ):
        libc.signal(ignored, ctypes.c_void_p(None))  # SIG_DFL
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        _print(f"cannot start {argv[0]}: {_missing_part(argv[0])}")
        return NOT_FOUND
    except OSError as error:
        _print(f"cannot start {argv[0]}: {error.strerror}")
        return CANNOT_EXECUTE


def _missing_part(program: str) -> str:
    if "/" in program and os.path.exists(program):  # noqa: PTH110 (pathlib is too heavy here)
        return "its interpreter or loader is missing (is it for another system?)"
    return "not found"


def _print(text: str) -> None:
    sys.stderr.write(f"trilithon guard: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

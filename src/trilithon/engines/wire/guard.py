"""The last step before an engine: ties the child to its parent's life, pins and limits it, then becomes the engine.

    python -m trilithon.engines.wire.guard --parent PID [--cpus 0,1,4-7] [--open-files N] -- ARGV...

This is a program of its own, and not subprocess's `preexec_fn`, because that runs Python between fork and exec:
in a parent with threads it can deadlock on a lock that another thread held. It imports next to nothing."""

# It adds about 17 ms to every cold start as runtime.process runs it (by path, python -I -S) and 26 ms as a module:
# medians of 25 on two x86-64 cores. It is the same for every placement.

import ctypes
import os
import resource
import sys
from collections.abc import Sequence

__all__ = ["CANNOT_EXECUTE", "NOT_FOUND", "NOT_PREPARED", "main"]

# The shell's and env's codes, so that they mean the same here.
NOT_PREPARED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

_USAGE = "usage: --parent PID [--cpus 0,1,4-7] [--open-files N] -- ARGV..."
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# asm-generic/signal.h; the signal module would cost 5 ms (it imports enum).
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25
_OOM_SCORE = 500  # of 1000
_MOST_CPUS = 8192  # CONFIG_NR_CPUS of the largest kernels; those that are not there are left out


class _GuardError(Exception):
    """Something that was asked for cannot be given; the message is one line."""


def main(arguments: Sequence[str]) -> int:
    """Become ARGV; returns only when that is impossible, with the exit code."""
    try:
        options, argv = _parse(arguments)
        _die_with(_integer(options["--parent"]))
        if "--cpus" in options:
            _pin(_cpus(options["--cpus"]))
        if "--open-files" in options:
            _allow_open_files(_integer(options["--open-files"]))
        # A core dump of a process that maps gigabytes would keep the board busy for minutes.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _be_first_to_go()
    except _GuardError as error:
        _say(str(error))
        return NOT_PREPARED
    return _become(argv)


def _parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    # By hand: argparse alone would double the start-up.
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    options, argv = dict(zip(words[:split:2], words[1:split:2], strict=False)), words[split + 1 :]
    known = options.keys() <= {"--parent", "--cpus", "--open-files"}
    if split % 2 or not known or "--parent" not in options or not argv:
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


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; that stays in force over exec.

    The kernel means the parent's *thread* that started us, and forgets it when a set-user-id program is executed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL)) != 0:
        raise _GuardError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before prctl, so no signal will come
        raise _GuardError(f"the parent {parent} is gone")


def _pin(cpus: set[int]) -> None:
    # The parent may keep itself to other CPUs than its children: what counts is what this user and cpuset may have.
    os.sched_setaffinity(0, range(_MOST_CPUS))
    allowed = os.sched_getaffinity(0)
    # The kernel would silently leave out what is missing; a measurement must not run on other CPUs than it says.
    if missing := cpus - allowed:
        raise _GuardError(f"CPUs {_listed(missing)} are not available here; available are {_listed(allowed)}")
    os.sched_setaffinity(0, cpus)


def _listed(cpus: set[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus)) or "none"


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        _say(f"note: {limit} open files allowed, {wanted} wanted; raise the hard limit (systemd: LimitNOFILE={wanted})")


def _be_first_to_go() -> None:
    # When memory runs out the kernel should take the engine, and not the server or the campaign that reports it.
    path = "/proc/self/oom_score_adj"
    try:
        with open(path, "r+", encoding="ascii") as file:  # noqa: PTH123 (pathlib is too heavy here)
            if int(file.read()) < _OOM_SCORE:
                file.seek(0)
                file.write(str(_OOM_SCORE))
    except OSError as error:  # a container may forbid it; the engine runs all the same
        _say(f"note: {path}: {error.strerror}")


def _become(argv: list[str]) -> int:
    # Python ignores these two, and an ignored signal would stay ignored in the engine.
    libc = ctypes.CDLL(None)
    for ignored in (_SIGPIPE, _SIGXFSZ):
        libc.signal(ignored, ctypes.c_void_p(None))  # SIG_DFL
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        _say(f"cannot start {argv[0]}: {_what_is_missing(argv[0])}")
        return NOT_FOUND
    except OSError as error:
        _say(f"cannot start {argv[0]}: {error.strerror}")
        return CANNOT_EXECUTE


def _what_is_missing(program: str) -> str:
    if "/" in program and os.path.exists(program):  # noqa: PTH110 (pathlib is too heavy here)
        return "its interpreter or loader is missing (made for another system?)"
    return "not found"


def _say(text: str) -> None:
    sys.stderr.write(f"trilithon guard: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

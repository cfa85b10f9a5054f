"""Runs tools such as CMake: their output goes to a log, their processes are ended with Trilithon, and a failure is one
line."""

import contextlib
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trilithon.errors import TrilithonError, UserError
from trilithon.settings import Configuration

__all__ = ["conversion_log", "conversions", "run_tool"]

_END_SECONDS = 5.0
_CHECK_SECONDS = 0.5
_PIECE_BYTES = 1 << 16
_NICE = 10
_TAIL_BYTES = 1 << 16
# Variables that would change the form of the output, or what is built.
_HIDDEN = {"MAKEFLAGS", "DESTDIR", "CLICOLOR_FORCE", "CMAKE_BUILD_PARALLEL_LEVEL"}
_CAUSES = (
    (r"Killed signal terminated program|fatal error: Killed", "the compiler ran out of memory; use --jobs 1"),
    (r"No space left on device", "the disk is full; free some, or name another folder with TRILITHON_CACHE"),
    (r"kleidiai[^\n]*(?:\n[^\n]*){0,20}(?:Failed to download|error: downloading|Each download failed)",
     "KleidiAI's source could not be fetched from GitHub; check the network, or leave --kleidiai out"),
    (r"Could NOT find Vulkan", "Vulkan's headers, loader or glslc are missing; install libvulkan-dev and glslc"),
    (r"SPIRV-Headers(?:Config\.cmake|-config\.cmake)", "CMake does not find SPIRV-Headers; install spirv-headers"),
)  # fmt: skip


def conversions(configuration: Configuration) -> Path:
    """The folder for logs of conversions, and for records of their working folders."""
    return configuration.cache / "conversions"


def conversion_log(configuration: Configuration, output: Path) -> Path:
    """The log for the tool that writes `output`; an earlier one is removed. Raises UserError."""
    log = conversions(configuration) / f"{output.name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; name another folder with TRILITHON_CACHE") from error
    return log


def run_tool(
    command: Sequence[str],
    log: Path,
    on_line: Callable[[str], None],
    *,
    inherited: Sequence[int] = (),
    check: Callable[[], None] | None = None,
    low_priority: bool = False,
    in_place: bool = False,
) -> None:
    """Run `command` to its end; each line of its output goes to `log` and to `on_line`. Raises TrilithonError when it
    fails. All processes that it started are ended, however this function ends. `inherited` are file descriptors that
    it keeps open, even if it outlives Trilithon. `check` is called at least twice a second, and may raise to end it.
    With `in_place` a carriage return ends a line too."""
    with log.open("ab") as file, _started(command, inherited) as process:
        if low_priority:
            os.setpriority(os.PRIO_PROCESS, process.pid, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        file.write(os.fsencode(f"$ {' '.join(command)}\n"))
        for line in _lines(process, check, in_place=in_place):
            file.write(line)
            file.flush()
            on_line(line.decode(errors="replace").rstrip())
        returncode = process.wait()
    if returncode:
        raise TrilithonError(f"{Path(command[0]).name} failed: {_why(log, returncode)} (log: {log})")


def _lines(process: subprocess.Popen[bytes], check: Callable[[], None] | None, *, in_place: bool) -> Iterator[bytes]:
    """The lines of the output with their line ends. A tool may print nothing for any time."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    line_start = b""
    while True:
        if check is not None:
            check()
        if not poll.poll(None if check is None else _CHECK_SECONDS * 1000):
            continue
        piece = os.read(process.stdout.fileno(), _PIECE_BYTES)
        if not piece:
            break
        if in_place:
            piece = piece.replace(b"\r", b"\n")
        *lines, line_start = (line_start + piece).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if line_start:
        yield line_start


@contextlib.contextmanager
def _started(command: Sequence[str], inherited: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """In its own process group, so that compilers are ended with the build tool that started them."""
    environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env=environment | {"LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "},
        start_new_session=True,
        pass_fds=inherited,
    )
    with process:
        try:
            yield process
        except BaseException:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            raise
        finally:
            _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, number)


def _why(log: Path, returncode: int) -> str:
    """A known cause, the first line with an error, or the exit code."""
    with log.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        text = file.read().decode(errors="replace")
    for pattern, cause in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return cause
    error = re.search(r"^.*(?:\b(?:error|fatal): |CMake Error[^\n]*\n\s*).*$", text, re.MULTILINE)
    if error:
        return " ".join(error[0].split())[:300]
    if returncode < 0:
        return f"killed by signal {-returncode} ({signal.strsignal(-returncode)})"
    return f"exit code {returncode}"

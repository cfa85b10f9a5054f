"""CMake and its like: run with their output watched and kept, ended with all they started, and their failures told in
a line."""

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
_LOOK_SECONDS = 0.5
_PIECE_BYTES = 1 << 16
_NICE = 10
_TAIL_BYTES = 1 << 16
# What would change the form of the output, or what is made.
_HIDDEN = {"MAKEFLAGS", "DESTDIR", "CLICOLOR_FORCE", "CMAKE_BUILD_PARALLEL_LEVEL"}
_CAUSES = (
    (r"Killed signal terminated program|fatal error: Killed", "the compiler ran out of memory; use --jobs 1"),
    (r"No space left on device", "the disk is full; free some, or name another folder with TRILITHON_CACHE"),
    (r"kleidiai[^\n]*(?:\n[^\n]*){0,20}(?:Failed to download|error: downloading|Each download failed)",
     "KleidiAI's source could not be fetched from GitHub; look at the network, or leave --kleidiai out"),
    (r"Could NOT find Vulkan", "Vulkan's headers, loader or glslc are missing; install libvulkan-dev and glslc"),
    (r"SPIRV-Headers(?:Config\.cmake|-config\.cmake)", "CMake does not find SPIRV-Headers; install spirv-headers"),
)  # fmt: skip


def conversions(configuration: Configuration) -> Path:
    """The folder of what is known about conversions: their logs, and where work is done."""
    return configuration.cache / "conversions"


def conversion_log(configuration: Configuration, output: Path) -> Path:
    """Where a tool's lines go that makes that file; not there yet. Raises UserError."""
    log = conversions(configuration) / f"{output.name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; name another folder with TRILITHON_CACHE") from error
    return log


def run_tool(
    words: Sequence[str],
    log: Path,
    on_line: Callable[[str], None],
    *,
    held: Sequence[int] = (),
    waiting: Callable[[], None] | None = None,
    gently: bool = False,
) -> None:
    """Run it to its end: each line goes to `log` and to `on_line`. Raises TrilithonError when it fails; on any way
    out, what it started is gone. `held` are descriptors that it keeps open, also where it outlives us. `waiting` is
    called at least twice a second, and may raise to end it. What runs `gently` leaves the cores to others."""
    with log.open("ab") as kept, _started(words, held) as process:
        if gently:
            os.setpriority(os.PRIO_PROCESS, process.pid, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        kept.write(f"$ {' '.join(words)}\n".encode())
        for line in _lines(process, waiting):
            kept.write(line)
            kept.flush()
            on_line(line.decode(errors="replace").rstrip())
        returncode = process.wait()
    if returncode:
        raise TrilithonError(f"{Path(words[0]).name} failed: {_why(log, returncode)} (log: {log})")


def _lines(process: subprocess.Popen[bytes], waiting: Callable[[], None] | None) -> Iterator[bytes]:
    """Each with its end; a tool that says nothing for long is waited for."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    kept = b""
    while True:
        if waiting is not None:
            waiting()
        if not poll.poll(None if waiting is None else _LOOK_SECONDS * 1000):
            continue
        piece = os.read(process.stdout.fileno(), _PIECE_BYTES)
        if not piece:
            break
        *lines, kept = (kept + piece).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if kept:
        yield kept


@contextlib.contextmanager
def _started(words: Sequence[str], held: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """In a process group of its own, so that compilers can be ended with the build tool that started them."""
    environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        env=environment | {"LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "},
        start_new_session=True,
        pass_fds=held,
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
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, number)


def _why(log: Path, returncode: int) -> str:
    """The known cause, or the first line that tells of an error."""
    with log.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        text = file.read().decode(errors="replace")
    for pattern, cause in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return cause
    found = re.search(r"^.*(?:\berror: |CMake Error[^\n]*\n\s*).*$", text, re.MULTILINE)
    if found:
        return " ".join(found[0].split())[:300]
    if returncode < 0:
        return f"ended by signal {-returncode} ({signal.strsignal(-returncode)})"
    return f"exit code {returncode}"

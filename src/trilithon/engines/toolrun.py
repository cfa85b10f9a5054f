"""CMake and its like: run with their output watched and kept, ended with all they started, and their failures told in
a line."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trilithon.errors import TrilithonError, UserError
from trilithon.settings import Configuration

__all__ = ["conversion_log", "conversions", "run_tool"]

_END_SECONDS = 5.0
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


def run_tool(words: Sequence[str], log: Path, on_line: Callable[[str], None], *, held: Sequence[int] = ()) -> None:
    """Run it to its end: each line goes to `log` and to `on_line`. Raises TrilithonError when it fails; on any way
    out, what it started is gone. `held` are descriptors that it keeps open, also where it outlives us."""
    with log.open("ab") as kept, _started(words, held) as process:
        assert process.stdout is not None
        kept.write(f"$ {' '.join(words)}\n".encode())
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            on_line(line.decode(errors="replace").rstrip())
        returncode = process.wait()
    if returncode:
        raise TrilithonError(f"{Path(words[0]).name} failed: {_why(log, returncode)} (log: {log})")


@contextlib.contextmanager
def _started(words: Sequence[str], held: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """In a process group of its own, so that compilers can be ended with the build tool that started them."""
    environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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
    return " ".join(found[0].split())[:300] if found else f"exit code {returncode}"

"""Quantises a GGUF file with the llama-quantize of a build of llama.cpp."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trilithon.engines.llamacpp.programs import IK, programs
from trilithon.engines.toolrun import conversion_log, conversions, run_tool
from trilithon.errors import Interrupted, ModelError, NoRoom, TrilithonError, UserError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.quantizations import FILE_TYPES, FORK_ONLY, UNQUANTISED
from trilithon.models.store.staging import publish, staging_dir
from trilithon.settings import Configuration

__all__ = ["find_quantizer", "known_kind", "quantize"]

_PROGRAM = "llama-quantize"
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
# The second is from the C++ library, on a full disk.
_FULL = re.compile(r"No space left on device|iostream error")
_CHOICES = (
    (re.compile(r"invalid ftype"), "is unknown to the llama-quantize of this build"),
    (
        re.compile(r"requires an (?:importance matrix|imatrix)|without an importance matrix"),
        "needs an importance matrix",
    ),
)


def find_quantizer(configuration: Configuration, kind: str = "") -> Path:
    """The llama-quantize beside the llama-server of a build that has `kind`, else the one on PATH. Raises UserError."""
    fork = IK if kind in FORK_ONLY else ""
    for program in programs(configuration):
        quantizer = program.path.with_name(_PROGRAM)
        if program.fork == fork and quantizer.is_file() and os.access(quantizer, os.X_OK):
            return quantizer
    if fork:
        raise UserError(
            f"{kind} is a quantization of {fork} alone; compile that with: trilithon engines build --engine ik"
        )
    on_path = shutil.which(_PROGRAM)
    if on_path is None:
        raise UserError(f"no build here has {_PROGRAM}; compile one with: trilithon engines build")
    return Path(on_path)


def quantize(
    source: Path,
    output: Path,
    kind: str,
    configuration: Configuration,
    progress: Callable[[str, float | None], None],
    *,
    again: bool = False,
    check: Callable[[], None] | None = None,
    low_priority: bool = False,
) -> Path:
    """`again` allows a source that is quantised already; `check` and `low_priority` as for `run_tool`. Raises UserError
    and ModelError for what can be checked before, NoRoom when the disk is full, TrilithonError when llama-quantize
    fails."""
    kind = known_kind(kind)
    before = read_gguf(source).quantization
    if before not in UNQUANTISED and not again:
        raise ModelError(
            f"{source} is already {before}, and gets worse if quantised again; take its F16 file, or add --again"
        )
    if os.path.lexists(output):
        raise UserError(f"{output} already exists; remove it, or name another file with --output")
    program, log = find_quantizer(configuration, kind), conversion_log(configuration, output)
    watch = _QuantiseProgress(kind, output, progress)
    try:
        with staging_dir(output, conversions(configuration)) as work:
            written = work.folder / output.name
            command = [str(program), *["--allow-requantize"] * again, str(source), str(written), kind]
            with watch.explaining():
                run_tool(command, log, watch, inherited=[work.lock], check=check, low_priority=low_priority)
            read_gguf(written)  # raises for a file that is cut short
            publish(written, output)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(output) from error
        raise UserError(f"{output} cannot be written: {error.strerror}; name another file with --output") from error
    return output


def known_kind(text: str) -> str:
    """The quantisation as llama-quantize writes it. Raises UserError for an unknown one."""
    kind = text.upper()
    if kind not in {name for name, _ in FILE_TYPES.values()}:
        raise UserError(f"{kind[:40]} is not a quantization; write for example Q4_K_M, Q8_0 or Q4_0")
    return kind


class _QuantiseProgress:
    """Reads progress from the output of llama-quantize, and recognises failures with a known fix."""

    def __init__(self, kind: str, output: Path, progress: Callable[[str, float | None], None]):
        self._kind, self._output, self._progress = kind, output, progress
        self.problem: UserError | None = None

    def __call__(self, line: str) -> None:
        if step := _STEP.match(line):
            self._progress("quantising", int(step[1]) / max(int(step[2]), 1))
        if _FULL.search(line):
            self.problem = _no_room(self._output)
        for pattern, problem in _CHOICES:
            if pattern.search(line):
                self.problem = UserError(f"{self._kind} {problem}; take for example Q4_K_M, Q8_0 or Q4_0")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raises the recognised failure in place of the tool's exit code."""
        try:
            yield
        except Interrupted:
            raise
        except TrilithonError as error:
            if self.problem is None:
                raise
            raise self.problem from error


def _no_room(output: Path) -> NoRoom:
    return NoRoom(f"the disk of {output.absolute().parent} is full; free some, or name a folder on another disk")

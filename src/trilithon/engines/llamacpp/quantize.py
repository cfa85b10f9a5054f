"""A GGUF in fewer bits, by the llama-quantize that comes with a build of llama.cpp."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trilithon.engines.llamacpp.programs import programs
from trilithon.engines.toolrun import conversion_log, conversions, run_tool
from trilithon.errors import Interrupted, ModelError, NoRoom, TrilithonError, UserError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.quantizations import FILE_TYPES, UNQUANTISED
from trilithon.models.store.staging import publish, staging_dir
from trilithon.settings import Configuration

__all__ = ["find_quantizer", "known_kind", "quantize"]

_PROGRAM = "llama-quantize"
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
# The second are the words of the C++ library, which do not name the disk: seen with one that was full.
_FULL = re.compile(r"No space left on device|iostream error")
_CHOICES = (
    (re.compile(r"invalid ftype"), "is unknown to the llama-quantize that is here"),
    (
        re.compile(r"requires an (?:importance matrix|imatrix)|without an importance matrix"),
        "needs an importance matrix",
    ),
)


def find_quantizer(configuration: Configuration) -> Path:
    """Beside the llama-server of a build, else on PATH. Raises UserError where there is none."""
    beside = [program.path.with_name(_PROGRAM) for program in programs(configuration)]
    for found in beside:
        if found.is_file() and os.access(found, os.X_OK):
            return found
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
    waiting: Callable[[], None] | None = None,
    gently: bool = False,
) -> Path:
    """`again` allows a source that is quantised already; `waiting` and `gently` as for `run_tool`. Raises UserError and
    ModelError for what can be known before, NoRoom when the disk gets full, TrilithonError when llama-quantize fails.
    """
    kind = known_kind(kind)
    before = read_gguf(source).quantization
    if before not in UNQUANTISED and not again:
        raise ModelError(
            f"{source} is {before} already, and quantised twice it gets worse; take its F16 file, or add --again"
        )
    if os.path.lexists(output):
        raise UserError(f"{output} is there already; remove it, or name another file with --output")
    program, log = find_quantizer(configuration), conversion_log(configuration, output)
    watch = _QuantiseProgress(kind, output, progress)
    try:
        with staging_dir(output, conversions(configuration)) as work:
            made = work.folder / output.name
            words = [str(program), *["--allow-requantize"] * again, str(source), str(made), kind]
            with watch.explaining():
                run_tool(words, log, watch, held=[work.lock], waiting=waiting, gently=gently)
            read_gguf(made)  # whole, or said to be otherwise
            publish(made, output)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(output) from error
        raise UserError(f"{output} cannot be written: {error.strerror}; name another file with --output") from error
    return output


def known_kind(text: str) -> str:
    """As llama-quantize writes it. Raises UserError for what is none."""
    kind = text.upper()
    if kind not in {name for name, _ in FILE_TYPES.values()}:
        raise UserError(f"{kind[:40]} is no quantization; write for example Q4_K_M, Q8_0 or Q4_0")
    return kind


class _QuantiseProgress:
    """Tells how far the tool is, and knows of some failures what fixes them."""

    def __init__(self, kind: str, output: Path, progress: Callable[[str, float | None], None]):
        self._kind, self._output, self._progress = kind, output, progress
        self.problem: UserError | None = None

    def __call__(self, line: str) -> None:
        if step := _STEP.match(line):
            self._progress("quantising", int(step[1]) / max(int(step[2]), 1))
        if _FULL.search(line):
            self.problem = _no_room(self._output)
        for words, trouble in _CHOICES:
            if words.search(line):
                self.problem = UserError(f"{self._kind} {trouble}; take for example Q4_K_M, Q8_0 or Q4_0")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """A failure of the tool becomes the problem that it told of."""
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

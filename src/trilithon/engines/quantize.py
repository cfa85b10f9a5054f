"""A GGUF in fewer bits, by the llama-quantize that comes with a build of llama.cpp."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from trilithon.engines.programs import programs
from trilithon.engines.toolrun import conversion_log, conversions, run_tool
from trilithon.errors import ModelError, UserError
from trilithon.models.gguf import known_quantizations, read_gguf
from trilithon.models.workshop import publish, workshop
from trilithon.settings import Configuration

__all__ = ["WHOLE", "find_quantizer", "quantize"]

WHOLE = ("F32", "F16", "BF16")
"""What loses nothing by being quantised once."""

_PROGRAM = "llama-quantize"
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


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
) -> Path:
    """`again` allows a source that is quantised already. Raises UserError and ModelError for what can be known before,
    TrilithonError when llama-quantize fails."""
    kind = kind.upper()
    if kind not in known_quantizations():
        raise UserError(f"{kind[:40]} is no quantization; write for example Q4_K_M, Q8_0 or Q4_0")
    before = read_gguf(source).quantization
    if before not in WHOLE and not again:
        raise ModelError(
            f"{source} is {before} already, and quantised twice it gets worse; take its F16 file, or add --again"
        )
    if os.path.lexists(output):
        raise UserError(f"{output} is there already; remove it, or name another file with --output")
    program, log = find_quantizer(configuration), conversion_log(configuration, output)
    try:
        with workshop(output, conversions(configuration)) as work:
            made = work.folder / output.name
            words = [str(program), *["--allow-requantize"] * again, str(source), str(made), kind]
            run_tool(words, log, lambda line: _watch(line, progress), held=[work.lock])
            read_gguf(made)  # whole, or said to be otherwise
            publish(made, output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; name another file with --output") from error
    return output


def _watch(line: str, progress: Callable[[str, float | None], None]) -> None:
    if step := _STEP.match(line):
        progress("quantising", int(step[1]) / max(int(step[2]), 1))

"""What conversions by other programs have in common: their Python, their progress, and where their files go.

A conversion that fails or is stopped leaves nothing behind but its log."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilithon.engines.toolrun import conversions
from trilithon.errors import TrilithonError, UserError
from trilithon.models.store.staging import StagingDir, staging_dir
from trilithon.settings import Configuration

__all__ = [
    "Converted",
    "Progress",
    "ToolProgress",
    "conversion_dir",
    "environment_python",
    "json_output",
    "require_new_file",
    "require_written",
]

Progress = Callable[[str, float | None], None]
"""Called with the current step and the fraction of it that is done, None where that is unknown."""

_PROBE_SECONDS = 120.0
_BAR = re.compile(r"(?:^|\s)(\d{1,3})%\|")  # a progress bar of tqdm


@dataclass(frozen=True, slots=True)
class Converted:
    """`beside` are further files that belong to `path`, in a folder of its name; `notes` are lines for the user."""

    path: Path
    log: Path
    beside: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class ToolProgress:
    """Reads progress from a tool's output: tqdm's bars, and lines `::STEP` that announce a step."""

    def __init__(self, progress: Progress, step: str = "", steps: Mapping[str, str] | None = None) -> None:
        self._progress, self._step, self._steps = progress, step, steps or {}
        if step:
            progress(step, None)

    def __call__(self, line: str) -> None:
        if line.startswith("::"):
            self._step = self._steps.get(line[2:], line[2:])
            self._progress(self._step, None)
        elif bar := _BAR.search(line):
            self._progress(self._step, min(int(bar[1]), 100) / 100)


def environment_python(folder: Path, variable: str) -> Path:
    """The Python of a virtual environment, or `folder` itself if it is a program. Raises UserError, naming the
    environment variable that named it."""
    python = folder / "bin/python" if folder.is_dir() else folder
    if not python.is_file() or not os.access(python, os.X_OK):
        raise UserError(
            "{variable} names {folder}, where there is no bin/python; name a virtual environment",
            variable=variable,
            folder=folder,
        )
    return python.absolute()


def json_output(python: Path, arguments: list[str]) -> dict[str, Any]:
    """The JSON object on the last line that `python` prints. Raises UserError where it prints none."""
    try:
        done = subprocess.run(
            [python, *arguments], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
        value = json.loads((done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise UserError(
            "{python} does not work ({name}); name another virtual environment",
            python=python,
            name=type(error).__name__,
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            "{python} does not work (it prints {value!r}); name another virtual environment",
            python=python,
            value=str(value)[:40],
        )
    return value


def require_new_file(output: Path, suffix: str) -> None:
    """Raises UserError where `output` exists, has another suffix, or its folder does not exist."""
    if output.suffix != suffix:
        raise UserError(
            "--output {output}: write a name that ends with {suffix}; engines recognise files by it",
            output=output,
            suffix=suffix,
        )
    if output.exists():
        raise UserError("{output} already exists; remove it, or name another file with --output", output=output)
    if not output.absolute().parent.is_dir():
        raise UserError(
            "{parent} does not exist; make it, or name another file with --output", parent=output.absolute().parent
        )


def require_written(path: Path, tool: str, log: Path) -> None:
    """Raises TrilithonError for a tool that ended without an error and wrote nothing."""
    if not path.is_file() or not path.stat().st_size:
        raise TrilithonError("{tool} reported success but wrote no file; its output is in {log}", tool=tool, log=log)


@contextlib.contextmanager
def conversion_dir(output: Path, configuration: Configuration) -> Iterator[StagingDir]:
    """A working folder on the disk of `output`, removed in the end. Raises UserError where it cannot be made."""
    try:
        with staging_dir(output, conversions(configuration)) as work:
            yield work
    except OSError as error:
        raise UserError(
            "{filename}: {reason}; name another file with --output",
            filename=error.filename or output,
            reason=error.strerror,
        ) from error

"""How far a compilation or a download is, on stderr: a bar on a terminal, a line for every tenth elsewhere."""

import time

from rich.progress import TaskProgressColumn, TextColumn, TimeElapsedColumn

from trilithon.cli.output import say
from trilithon.cli.progress import ProgressBar
from trilithon.models.fetch.transfer_rate import TransferProgress
from trilithon.units import format_bytes, format_duration

__all__ = ["CompileProgress", "FetchProgress"]

# The first files are small: what they took says little about the rest.
_LEAST_FRACTION = 0.03


class CompileProgress(ProgressBar):
    """A context manager that is called with what is being done, and the fraction of it that is done."""

    def __init__(self) -> None:
        left = TextColumn("{task.fields[left]}")
        super().__init__(TaskProgressColumn(), TimeElapsedColumn(), left, left="")
        self._shown = ("", -1)
        self._began = (0.0, 0.0)
        self._text = ""

    def __call__(self, text: str, fraction: float | None) -> None:
        left = self._left(text, fraction)
        if self._bar is not None:
            total = None if fraction is None else 1.0
            self._bar.update(self._task, description=text, total=total, completed=fraction or 0.0, left=left)
            return
        shown = (text, int((fraction or 0.0) * 10))
        if shown != self._shown:
            percent = "" if fraction is None or not shown[1] else f" {fraction:.0%}"
            line = f"{text}{percent}{', ' + left if left else ''}"
            say(line, err=True)
        self._shown = shown

    def _left(self, text: str, fraction: float | None) -> str:
        now = time.monotonic()
        if text != self._text:
            self._text, self._began = text, (now, fraction or 0.0)
        began, first = self._began
        if fraction is None or fraction - first < _LEAST_FRACTION or fraction >= 1:
            return ""
        return f"about {format_duration((now - began) / (fraction - first) * (1 - fraction))} left"


class FetchProgress(CompileProgress):
    """The same for bytes: a callback of a download of `name`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def report(self, progress: TransferProgress) -> None:
        done, total = progress.done_bytes, progress.total_bytes
        text = f"fetching {self._name}" + (f", {format_bytes(total)}" if total else "")
        self(text, done / total if total else None)

"""What a user sees on stderr while something takes long: a bar on a terminal, a line per step elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trilithon.bench.tally import Step
from trilithon.units import format_bytes, format_duration

__all__ = ["CampaignProgress", "reading"]


class CampaignProgress:
    """A context manager that is called with every Step of a campaign."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._last = ""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("run {task.fields[number]} of {task.fields[planned]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, number=0, planned="?", left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: Step) -> None:
        left = "" if step.remaining_seconds is None else f"about {format_duration(step.remaining_seconds)} left"
        number = min(step.runs_done + 1, step.runs_planned)
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=step.text,
                completed=step.runs_done,
                total=step.runs_planned,
                number=number,
                planned=step.runs_planned,
                left=left,
            )
        elif step.text != self._last:
            head = f"[{number}/{step.runs_planned}] {step.text}"
            print(f"{head}, {left}" if left else head, file=sys.stderr, flush=True)  # noqa: T201 - the progress itself
        self._last = step.text


class reading:  # noqa: N801 - used as a function: `progress=reading("the model")`
    """Progress of reading a large file, for callbacks of bytes done and bytes in all; silent for two seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._shown = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._started < 2 or now - self._shown < 1:
            return
        self._shown = now
        print(  # noqa: T201 - the progress itself
            f"{self._what}: {format_bytes(done)} of {format_bytes(total)}", file=sys.stderr, flush=True
        )

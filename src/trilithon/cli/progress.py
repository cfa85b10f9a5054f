"""What a user sees on stderr while something takes long: a bar on a terminal, a line per step elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from trilithon.cli.output import say
from trilithon.language import Message
from trilithon.terminal import plain_console
from trilithon.units import format_bytes, format_duration

__all__ = ["CampaignProgress", "ProgressBar", "reading"]

if TYPE_CHECKING:
    from trilithon.bench.progress import CampaignStep


class ProgressBar:
    """A context manager to inherit from. `_bar` is None without a terminal, or when not `wanted`; the columns stand
    right of the bar, and `fields` are theirs."""

    def __init__(
        self,
        *columns: ProgressColumn,
        description: str = "starting",
        wanted: bool = True,
        visible: bool = True,
        **fields: Any,
    ) -> None:
        self._bar: Progress | None = None
        console = plain_console(stderr=True, markup=False)
        if console.is_terminal and wanted:
            shown = (TextColumn("{task.description}", markup=False), BarColumn(), *columns)
            self._bar = Progress(*shown, console=console, transient=True)
            self._task = self._bar.add_task(description, total=None, visible=visible, **fields)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class CampaignProgress(ProgressBar):
    """A context manager that is called with every Step of a campaign."""

    def __init__(self) -> None:
        runs = TextColumn("run {task.fields[number]} of {task.fields[planned]}")
        left = TextColumn("{task.fields[left]}")
        super().__init__(runs, TimeElapsedColumn(), left, number=0, planned="?", left="")
        self._last = ""

    def __call__(self, step: "CampaignStep") -> None:
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
            say(f"{head}, {left}" if left else head, err=True)
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
        size, whole = format_bytes(done), format_bytes(total)
        say(Message("{what}: {done} of {total}", what=self._what, done=size, total=whole), err=True)

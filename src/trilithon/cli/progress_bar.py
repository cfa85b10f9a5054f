"""The bar that all commands show on stderr while something takes long; only a terminal has one."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

__all__ = ["ProgressBar"]


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
        console = Console(stderr=True)
        if console.is_terminal and wanted:
            shown = (TextColumn("{task.description}"), BarColumn(), *columns)
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

"""The first half of a handover: a runner that only prefills, restarted in the background when it fails."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from trilithon.errors import RunError
from trilithon.runtime.runner import Runner

__all__ = ["Prefiller"]

# Waits after 1, 2, 3, 4 and more failures in a row. One crash may be chance, and a driver that fails at every start
# must not keep a board busy with loading.
WAITS_SECONDS = (0.0, 1.0, 10.0, 60.0)


class Prefiller:
    """Use `Prefiller.open`. `failures` counts from the start; `reason` says why there is no runner now."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[Runner]]):
        self._start = start
        self._runner: Runner | None = None
        self._failed = asyncio.Event()
        self._attempted = asyncio.Event()
        self._failures_in_a_row = 0
        self._restart_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.failures = 0
        self.reason = "it is starting"

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, start: Callable[[], AbstractAsyncContextManager[Runner]]) -> AsyncIterator["Prefiller"]:
        """`start` opens a runner."""
        prefiller = cls(start)
        task = prefiller._task = asyncio.create_task(prefiller._run())
        try:
            yield prefiller
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()):
                raise error

    @property
    def runner(self) -> Runner | None:
        """None while it starts, or waits for its restart."""
        return self._runner

    @property
    def restart_in_seconds(self) -> float:
        """0 while it runs or starts."""
        return max(0.0, self._restart_at - time.monotonic())

    def retire(self) -> None:
        """End it for good, which frees its memory."""
        if self._task is not None:
            self._task.cancel()

    async def attempted(self) -> None:
        """Wait until the first start has succeeded or failed."""
        await self._attempted.wait()

    def succeeded(self) -> None:
        self._failures_in_a_row = 0

    def failed(self, runner: Runner, error: RunError) -> None:
        """`runner` cannot be used any more: start a new one, unless that has happened already."""
        if self._runner is runner:
            self._runner = None
            self._record(error)
            self._failed.set()

    def _record(self, error: RunError) -> None:
        self.failures += 1
        self._failures_in_a_row += 1
        self.reason = str(error)
        self._attempted.set()

    async def _run(self) -> None:
        while True:
            try:
                async with self._start() as runner:
                    self._failed.clear()
                    self._runner, self.reason = runner, ""
                    self._attempted.set()
                    await self._failed.wait()
            except RunError as error:
                self._record(error)
            finally:
                self._runner = None
            wait_seconds = WAITS_SECONDS[min(self._failures_in_a_row, len(WAITS_SECONDS)) - 1]
            self._restart_at = time.monotonic() + wait_seconds
            await asyncio.sleep(wait_seconds)

"""The first half of a handover: a runner that only prefills, started anew in the background whenever it fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from trilithon.errors import RunError
from trilithon.runtime.runner import Runner

__all__ = ["Prefiller"]

# Seconds of rest after so many failures in a row; the last one counts from then on. One crash may be bad luck, and
# a driver that fails at every start must not keep a board busy with loading.
RESTS_SECONDS = (0.0, 1.0, 10.0, 60.0)


class Prefiller:
    """Use `Prefiller.open`. `failures` counts all of them, `reason` is why there is no runner now."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[Runner]]):
        self._start = start
        self._runner: Runner | None = None
        self._broken = asyncio.Event()
        self._tried = asyncio.Event()
        self._in_a_row = 0
        self._keeping: asyncio.Task[None] | None = None
        self.failures = 0
        self.reason = "it is starting"

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, start: Callable[[], AbstractAsyncContextManager[Runner]]) -> AsyncIterator["Prefiller"]:
        """`start` opens the runner, every time one is needed."""
        prefiller = cls(start)
        keeping = prefiller._keeping = asyncio.create_task(prefiller._keep())
        try:
            yield prefiller
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            if not keeping.cancelled() and (error := keeping.exception()):
                raise error

    @property
    def runner(self) -> Runner | None:
        """The live one; None while it starts or rests."""
        return self._runner

    def retire(self) -> None:
        """End it for good: what it takes of the memory is free again."""
        if self._keeping is not None:
            self._keeping.cancel()

    async def tried(self) -> None:
        """Until the first start has succeeded or failed."""
        await self._tried.wait()

    def worked(self) -> None:
        self._in_a_row = 0

    def failed(self, runner: Runner, error: RunError) -> None:
        """Report that `runner` cannot be used any more; a new one is started, if that was not done already."""
        if self._runner is runner:
            self._runner = None
            self._note(error)
            self._broken.set()

    def _note(self, error: RunError) -> None:
        self.failures += 1
        self._in_a_row += 1
        self.reason = str(error)
        self._tried.set()

    async def _keep(self) -> None:
        while True:
            try:
                async with self._start() as runner:
                    self._broken.clear()
                    self._runner, self.reason = runner, ""
                    self._tried.set()
                    await self._broken.wait()
            except RunError as error:
                self._note(error)
            finally:
                self._runner = None
            await asyncio.sleep(RESTS_SECONDS[min(self._in_a_row, len(RESTS_SECONDS)) - 1])

"""A live child process that runs one placement: start it, speak to it, find out why it died, stop it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

from trilithon.children.wire import Candidate, Chat, Completion, Event, Finished, Timings
from trilithon.engines.base import Engine, Placement
from trilithon.errors import ChildDied, Hung, StartError
from trilithon.runtime.client import Client, Disconnected
from trilithon.runtime.process import Process

__all__ = ["Runner"]

T = TypeVar("T")

# Between two looks at whether the child is ready: short at first, since a cold start is itself a measurement.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1
# A broken connection usually means a dying child; it gets this long to be gone before it is called merely broken.
_DEATH_SECONDS = 5.0


class Runner:
    """Use `Runner.open`. Every request raises RunError (ChildDied, Hung, Refused) when the placement fails."""

    def __init__(self, placement: Placement, process: Process, client: Client, ready_ns: int, log: Path):
        self.placement = placement
        self.process = process
        self.client = client
        self.started_ns = process.started_ns
        self.ready_ns = ready_ns
        self.log = log

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, engine: Engine, placement: Placement, folder: Path, *, start_seconds: float, hang_seconds: float
    ) -> AsyncIterator["Runner"]:
        """Start the placement's child in `folder` (private, emptied by the caller) and wait until it is ready.

        Raises StartError when it dies before, or is not ready after `start_seconds`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        launch = engine.launch(placement, folder)
        launch.socket.unlink(missing_ok=True)  # of a runner that had this folder before: binding to it would fail
        log = folder / "log"
        process = await Process.start(launch, log)
        try:
            client = Client(launch.socket, hang_seconds=hang_seconds)
            ready_ns = await _until_ready(process, client, placement.name, start_seconds)
            yield cls(placement, process, client, ready_ns, log)
        finally:
            await process.stop()

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, Finished last. Closing the generator cancels it."""
        try:
            async with contextlib.aclosing(self.client.stream(request)) as events:
                async for event in events:
                    yield event
        except (Disconnected, Hung) as error:
            raise await self._explained(error) from error

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """Run one request to its end; the events before it, then Finished. Disturbs the child less than `stream`."""
        return await self._asked(self.client.complete(request))

    async def timed(self, request: Completion) -> Finished:
        """Run one request for its timings alone: without a stream, it disturbs the child least."""
        return await self._asked(self.client.timed(request))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        return await self._asked(self.client.distribution(request))

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return await self._asked(self.client.tokenize(text, add_special=add_special))

    async def vocabulary(self) -> int:
        return await self._asked(self.client.vocabulary())

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (Disconnected, Hung) as error:
            raise await self._explained(error) from error

    async def _explained(self, error: Disconnected | Hung) -> Disconnected | Hung | ChildDied:
        """A broken connection is the child's death, if it dies of it; a hang may be one that nobody reported."""
        with contextlib.suppress(TimeoutError):
            seconds = _DEATH_SECONDS if isinstance(error, Disconnected) else 0.1
            await asyncio.wait_for(self.process.wait(), seconds)
        if self.process.returncode is None:
            return error
        found = self.process.diagnose()
        return ChildDied(
            f"{self.placement.name} died: {found.cause}",
            cause=found.cause,
            advice=found.advice,
            last_words=found.last_words,
        )


async def _until_ready(process: Process, client: Client, name: str, limit_seconds: float) -> int:
    """Wait for health; returns the moment (monotonic ns)."""
    pause = _FIRST_PAUSE_SECONDS
    try:
        async with asyncio.timeout(limit_seconds):
            while not await client.ready():
                if process.returncode is not None:
                    raise await _not_started(process, name)
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    except TimeoutError as error:
        raise StartError(
            f"{name} was not ready after {limit_seconds:g} s",
            cause="not ready in time",
            advice="allow longer with TRILITHON_START_SECONDS",
            last_words=process.diagnose().last_words,
        ) from error
    return time.monotonic_ns()


async def _not_started(process: Process, name: str) -> StartError:
    await process.wait()  # it takes the count of out-of-memory kills, which the diagnosis needs
    found = process.diagnose()
    return StartError(
        f"{name} did not start: {found.cause}", cause=found.cause, advice=found.advice, last_words=found.last_words
    )

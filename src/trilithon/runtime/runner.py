"""A live child process that runs one placement: start it, speak to it, find out why it died, stop it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trilithon.engines.base import Engine, Launch, Placement
from trilithon.engines.wire.messages import CacheTransfer, Candidate, Chat, Completion, Event, Finished, Timings
from trilithon.errors import ChildDied, EngineTimeout, StartError
from trilithon.runtime.client import Client, Disconnected
from trilithon.runtime.handover_state import HandoverState
from trilithon.runtime.npu import NpuLock, other_npu_users
from trilithon.runtime.process import Process
from trilithon.runtime.relay import Relayed

__all__ = ["Runner"]

T = TypeVar("T")
Turn = Callable[[], AbstractAsyncContextManager[None]]

# Between two looks at whether the child is ready: short at first, since a cold start is itself a measurement.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1
# A broken connection usually means a dying child; it gets this long to be gone before it is called merely broken.
_DEATH_SECONDS = 5.0
# What the program answers without the unit.
_NO_WORK = frozenset({"/tokenize", "/detokenize", "/apply-template"})


@dataclass(slots=True)
class _Work:
    """`cut_short`: nobody waits any more, and the engine may still be at it."""

    cut_short: bool = False


class Runner:
    """Use `Runner.open`. Every request raises RunError (ChildDied, EngineTimeout, Refused) when the placement fails."""

    def __init__(
        self,
        placement: Placement,
        process: Process,
        client: Client,
        ready_ns: int,
        log: Path,
        *,
        turn: Turn = contextlib.nullcontext,
        others: tuple[str, ...] = (),
    ):
        """`turn` is held around whatever makes the placement's unit work; `others` are processes that share it."""
        self.placement = placement
        self.process = process
        self.client = client
        self.started_ns = process.started_ns
        self.ready_ns = ready_ns
        self.log = log
        self.turn = turn
        self._others = others
        self._resting: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        engine: Engine,
        placement: Placement,
        folder: Path,
        *,
        start_seconds: float,
        hang_seconds: float,
        slots: Path | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> AsyncIterator["Runner"]:
        """Start the placement's child in `folder` (private, emptied by the caller) and wait until it is ready.
        Saved slots go to its folder `slots`, or to the one given here. `waiting` is told for whom it waits.

        Raises StartError when it dies before, or is not ready after `start_seconds`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if slots is not None:
            (folder / "slots").unlink(missing_ok=True)  # a link of a runner that had this folder before leads nowhere
            (folder / "slots").symlink_to(slots)
        launch = engine.launch(placement, folder)
        launch.socket.unlink(missing_ok=True)  # of a runner that had this folder before: binding to it would fail
        log = folder / "log"
        client = Client(launch.socket, hang_seconds=hang_seconds)
        turn, others = await _tenancy(launch, placement.name, waiting)
        async with contextlib.AsyncExitStack() as living:
            async with turn(), contextlib.AsyncExitStack() as loading:
                process = await Process.start(launch, log)
                loading.push_async_callback(process.stop)
                ready_ns = await _until_ready(process, client, placement.name, start_seconds, others)
                runner = cls(placement, process, client, ready_ns, log, turn=turn, others=others)
                living.push_async_callback(runner._rested)  # once the process is stopped
                living.push_async_exit(loading.pop_all())
            yield runner

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it that lives now, `process` first."""
        return (self.process,)

    @property
    def handover(self) -> HandoverState | None:
        """None for a runner of one placement."""
        return None

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about it so far, one line each."""
        return self._others

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, Finished last. Closing the generator cancels it."""
        try:
            async with self._working(), contextlib.aclosing(self.client.stream(request)) as events:
                async for event in events:
                    yield event
        except (Disconnected, EngineTimeout) as error:
            raise await self._explained(error) from error

    @contextlib.asynccontextmanager
    async def relay(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Relayed]:
        """Run one request of the engine's own form; the answer's bytes as they come. Leaving the block cancels it.

        Raises Refused with the engine's status instead of entering the block."""
        most = self.placement.settings.context
        async with (
            contextlib.nullcontext(_Work()) if path in _NO_WORK else self._working() as work,
            Relayed.open(self.client, path, body, self._asked, most_tokens=most) as relayed,
        ):
            yield relayed
            work.cut_short = not relayed.complete

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """Run one request to its end; the events before it, then Finished. Disturbs the child less than `stream`."""
        async with self._working():
            return await self._asked(self.client.complete(request))

    async def timed(self, request: Completion) -> Finished:
        """Run one request for its timings alone: without a stream, it disturbs the child least."""
        async with self._working():
            return await self._asked(self.client.timed(request))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        async with self._working():
            return await self._asked(self.client.distribution(request))

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return await self._asked(self.client.tokenize(text, add_special=add_special))

    async def rendered(self, request: Chat | Mapping[str, Any]) -> str:
        return await self._asked(self.client.rendered(request))

    async def save_slot(self, slot: int, name: str) -> CacheTransfer:
        return await self._asked(self.client.save_slot(slot, name))

    async def restore_slot(self, slot: int, name: str) -> CacheTransfer:
        return await self._asked(self.client.restore_slot(slot, name))

    async def vocabulary(self) -> int:
        return await self._asked(self.client.vocabulary())

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[_Work]:
        """One turn on a unit that has one tenant at a time; elsewhere nothing."""
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self.turn())
            work, over = _Work(), False
            try:
                yield work
                over = not work.cut_short
            finally:
                if not over and self.turn is not contextlib.nullcontext:
                    # The engine works on until the end of the batch, and nobody should have to wait for that here.
                    rest = asyncio.create_task(self._rest(held.pop_all()))
                    self._resting.add(rest)
                    rest.add_done_callback(self._resting.discard)

    async def _rest(self, held: contextlib.AsyncExitStack) -> None:
        async with held:
            while self.process.returncode is None:
                if await self.client.idle():
                    return
                await asyncio.sleep(_LONGEST_PAUSE_SECONDS)

    async def _rested(self) -> None:
        await asyncio.gather(*self._resting)

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (Disconnected, EngineTimeout) as error:
            raise await self._explained(error) from error

    async def _explained(self, error: Disconnected | EngineTimeout) -> Disconnected | EngineTimeout | ChildDied:
        """A broken connection is the child's death, if it dies of it; a hang may be one that nobody reported."""
        with contextlib.suppress(TimeoutError):
            seconds = _DEATH_SECONDS if isinstance(error, Disconnected) else 0.1
            await asyncio.wait_for(self.process.wait(), seconds)
        if self.process.returncode is None:
            return error
        diagnose = self.process.diagnose()
        return ChildDied(
            f"{self.placement.name} died: {diagnose.cause}",
            cause=diagnose.cause,
            advice="; ".join(filter(None, (diagnose.advice, *self._others))),
            last_words=diagnose.last_words,
        )


async def _tenancy(launch: Launch, name: str, waiting: Callable[[str], None] | None) -> tuple[Turn, tuple[str, ...]]:
    """How to take turns on the unit, and who else has it open."""
    if launch.exclusive is None:
        return contextlib.nullcontext, ()
    return NpuLock(name, waiting=waiting).turn, await asyncio.to_thread(other_npu_users)


async def _until_ready(
    process: Process, client: Client, name: str, limit_seconds: float, others: tuple[str, ...]
) -> int:
    """Wait for health; returns the moment (monotonic ns)."""
    pause = _FIRST_PAUSE_SECONDS
    try:
        async with asyncio.timeout(limit_seconds):
            while not await client.ready():
                if process.returncode is not None:
                    raise await _not_started(process, name, others)
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


async def _not_started(process: Process, name: str, others: tuple[str, ...]) -> StartError:
    await process.wait()  # it takes the count of out-of-memory kills, which the diagnosis needs
    diagnose = process.diagnose()
    advice = "; ".join(filter(None, (diagnose.advice, *others)))
    return StartError(
        f"{name} did not start: {diagnose.cause}", cause=diagnose.cause, advice=advice, last_words=diagnose.last_words
    )

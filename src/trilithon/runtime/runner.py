"""A child process that runs one placement: start it, send requests, find out why it died, stop it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trilithon.board.processes import read_process
from trilithon.engines.base import Engine, Launch, Placement
from trilithon.engines.wire.messages import CacheTransfer, Candidate, Chat, Completion, Event, Finished, Timings
from trilithon.errors import ChildDied, EngineTimeout, RunError, StartError
from trilithon.runtime.client import Client, Disconnected
from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.handover_state import HandoverState
from trilithon.runtime.memory_need import limit_while_loading, spare_while_running
from trilithon.runtime.npu import NpuLock, other_npu_users
from trilithon.runtime.process import Process
from trilithon.runtime.relay import Relayed
from trilithon.runtime.taint import ErrorWatch

__all__ = ["NO_WORK", "Runner"]

T = TypeVar("T")
Admission = Callable[[str, Mapping[str, Any]], Awaitable[None]]
"""Looks at a request's path and body before the engine gets them. Raises EngineError."""
PostMortem = Callable[[str, Mapping[str, Any], ChildDied], Awaitable[None]]
"""Looks at a request whose engine died. Raises EngineError, which is not tried again, where the request is why."""
UnitLock = Callable[[], AbstractAsyncContextManager[None]]

# Between two health checks: short at first, since the start is itself measured.
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.005, 0.1
# A broken connection usually means that the child is dying; it is waited for so long.
_DEATH_SECONDS = 5.0
NO_WORK = frozenset({"/tokenize", "/detokenize", "/apply-template"})
"""Requests that do not use the unit: engines answer them while they generate."""


@dataclass(slots=True)
class _Work:
    """`cut_short`: the request was left early, and the engine may still work on it."""

    watch: ErrorWatch
    cut_short: bool = False


class Runner:
    """Use `Runner.open`. Requests raise RunError (ChildDied, EngineTimeout, EngineError) when the placement fails."""

    def __init__(
        self,
        placement: Placement,
        process: Process,
        client: Client,
        ready_ns: int,
        log: Path,
        *,
        unit_lock: UnitLock = contextlib.nullcontext,
        other_users: tuple[str, ...] = (),
        reports_errors: bool = False,
    ):
        """`unit_lock` is held around all work of the unit; `other_users` describes other processes that have it
        open; `reports_errors` is that of `Launch`."""
        self.placement = placement
        self.process = process
        self.client = client
        self.started_ns = process.started_ns
        self.ready_ns = ready_ns
        self.log = log
        self.unit_lock = unit_lock
        self._other_users = other_users
        self.reports_errors = reports_errors
        self._watched_log = None if reports_errors else log
        self.admission: Admission | None = None
        self.post_mortem: PostMortem | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._erasing: set[asyncio.Task[None]] = set()

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
        memory_bytes: int | None = None,
        cpu_seconds: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> AsyncIterator["Runner"]:
        """Start the placement's child in `folder` (private, emptied by the caller) and wait until it is ready.
        Saved slots go to its folder `slots`, or to the one given here. `tell` gets a line while it waits for the unit.
        `memory_bytes` and `cpu_seconds` limit the child; without them its memory is limited by what it needs (0: not).

        Raises StartError when it dies before, or is not ready after `start_seconds`."""
        folder.mkdir(parents=True, exist_ok=True)
        if slots is not None:
            (folder / "slots").unlink(missing_ok=True)  # a dangling link of an earlier runner in this folder
            (folder / "slots").symlink_to(slots)
        launch = engine.launch(placement, folder)
        by_need = memory_bytes is None and launch.memory_bytes is None
        if by_need:
            memory_bytes = await asyncio.to_thread(limit_while_loading, placement)
        launch = replace(
            launch,
            memory_bytes=launch.memory_bytes if memory_bytes is None else memory_bytes,
            cpu_seconds=cpu_seconds or launch.cpu_seconds,
        )
        launch.socket.unlink(missing_ok=True)  # of an earlier runner in this folder: binding would fail
        log = folder / "log"
        client = Client(Endpoint.of(launch), hang_seconds=hang_seconds)
        unit_lock, other_users = await _unit_lock(launch, placement.name, tell)
        async with contextlib.AsyncExitStack() as running:
            async with unit_lock(), contextlib.AsyncExitStack() as loading:
                process = await Process.start(launch, log)
                client.endpoint.pid = process.pid
                loading.push_async_callback(process.stop)
                ready_ns = await _until_ready(process, client, placement.name, start_seconds, other_users)
                if by_need and launch.memory_bytes:
                    process.limit_memory(spare_while_running(placement))
                runner = cls(
                    placement,
                    process,
                    client,
                    ready_ns,
                    log,
                    unit_lock=unit_lock,
                    other_users=other_users,
                    reports_errors=launch.reports_errors,
                )
                running.push_async_callback(runner._released)  # once the process is stopped
                running.push_async_exit(loading.pop_all())
            yield runner

    @property
    def processes(self) -> tuple[Process, ...]:
        """Its live processes, `process` first."""
        return (self.process,)

    async def idle(self) -> bool:
        """Whether none of its processes works on a request, as far as they report it."""
        return await self.client.idle()

    @property
    def handover(self) -> HandoverState | None:
        """None for a runner of one placement."""
        return None

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about it so far, one line each."""
        return self._other_users

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, `Finished` last. Closing the generator cancels it."""
        try:
            async with self._locked() as work, contextlib.aclosing(self.client.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        work.watch.check()
                    yield event
        except (Disconnected, EngineTimeout) as error:
            raise await self._cause_of(error) from error

    async def admit(self, path: str, body: Mapping[str, Any]) -> None:
        """As `relay` does first. What was admitted is remembered. Raises EngineError."""
        if self.admission:
            await self.admission(path, body)

    @contextlib.asynccontextmanager
    async def relay(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Relayed]:
        """Run one request in the engine's own format; the answer's bytes as they arrive. Leaving the block cancels it.

        Raises EngineError, with the engine's status, instead of entering the block."""
        await self.admit(path, body)
        max_tokens = self.placement.settings.context
        async with contextlib.nullcontext(_Work(ErrorWatch(None))) if path in NO_WORK else self._locked() as work:
            opening = Relayed.open(self.client, path, body, self._answer, work.watch, max_tokens=max_tokens)
            async with contextlib.AsyncExitStack() as stack:
                try:
                    relayed = await stack.enter_async_context(opening)
                except ChildDied as error:
                    if self.post_mortem:
                        await self.post_mortem(path, body, error)
                    raise
                yield relayed
                work.cut_short = not relayed.complete

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """Run one request to its end; its events, then `Finished`. Takes less CPU time than `stream`."""
        return await self._work(self.client.complete(request))

    async def timed(self, request: Completion) -> Finished:
        """Run one request only for its timings: without a stream, which takes the least CPU time."""
        return await self._work(self.client.timed(request))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        return await self._work(self.client.distribution(request))

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return await self._answer(self.client.tokenize(text, add_special=add_special))

    async def apply_template(self, request: Chat | Mapping[str, Any]) -> str:
        return await self._answer(self.client.apply_template(request))

    async def save_slot(self, slot: int, name: str) -> CacheTransfer:
        return await self._watched(self.client.save_slot(slot, name))

    async def restore_slot(self, slot: int, name: str) -> CacheTransfer:
        return await self._watched(self.client.restore_slot(slot, name))

    async def vocabulary_size(self) -> int:
        return await self._answer(self.client.vocabulary_size())

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[_Work]:
        """Hold the unit's lock."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.unit_lock())
            await asyncio.gather(*self._erasing)
            work, over = _Work(stack.enter_context(ErrorWatch(self._watched_log))), False
            try:
                yield work
                over = not work.cut_short
            finally:
                if work.watch.error:
                    _keep(asyncio.create_task(self._erase_when_idle()), self._erasing)
                if not over and self.unit_lock is not contextlib.nullcontext:
                    # The engine works until the end of its batch; the lock is released then, without a wait here.
                    _keep(asyncio.create_task(self._release_when_idle(stack.pop_all())), self._releasing)

    async def _release_when_idle(self, lock: contextlib.AsyncExitStack) -> None:
        async with lock:
            await self._idle()

    async def _erase_when_idle(self) -> None:
        """Keys and values that were computed while the unit failed would spoil later answers silently."""
        await self._idle()
        for slot in range(self.placement.settings.slots):
            with contextlib.suppress(RunError):  # a server without slots, or that ends, keeps nothing
                await self.client.erase_slot(slot)

    async def _idle(self) -> None:
        """Wait until the engine works on no request, or has ended."""
        while self.process.returncode is None:
            if await self.client.idle():
                return
            await asyncio.sleep(_MAX_PAUSE_SECONDS)

    async def _released(self) -> None:
        await asyncio.gather(*self._releasing, *self._erasing)

    async def _work(self, answer: Awaitable[T]) -> T:
        async with self._locked() as work:
            result = await self._answer(answer)
            work.watch.check()
            return result

    async def _watched(self, answer: Awaitable[T]) -> T:
        with ErrorWatch(self._watched_log) as watch:
            result = await self._answer(answer)
            watch.check()
            return result

    async def _answer(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (Disconnected, EngineTimeout) as error:
            raise await self._cause_of(error) from error

    async def _cause_of(self, error: Disconnected | EngineTimeout) -> Disconnected | EngineTimeout | ChildDied:
        """ChildDied when the child has ended, or ends within a moment; else the error itself."""
        with contextlib.suppress(TimeoutError):
            seconds = _DEATH_SECONDS if isinstance(error, Disconnected) else 0.1
            await asyncio.wait_for(self.process.wait(), seconds)
        if self.process.returncode is None:
            error.last_words = self.process.diagnose().last_words
            return error
        diagnosis = self.process.diagnose()
        return ChildDied(
            f"{self.placement.name} died: {diagnosis.cause}",
            cause=diagnosis.cause,
            advice="; ".join(filter(None, (diagnosis.advice, *self._other_users))),
            last_words=diagnosis.last_words,
        )


def _keep(task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _unit_lock(launch: Launch, name: str, tell: Callable[[str], None] | None) -> tuple[UnitLock, tuple[str, ...]]:
    """The lock of the unit, and other processes that have it open."""
    if launch.exclusive is None:
        return contextlib.nullcontext, ()
    return NpuLock(name, tell=tell).held, await asyncio.to_thread(other_npu_users)


async def _until_ready(
    process: Process, client: Client, name: str, limit_seconds: float, other_users: tuple[str, ...]
) -> int:
    """Wait until the child is healthy; returns the time (monotonic ns)."""
    pause, last_running = _FIRST_PAUSE_SECONDS, time.monotonic()
    try:
        async with asyncio.timeout(limit_seconds):
            while not await client.ready():
                if process.returncode is not None:
                    raise await _not_started(process, name, other_users)
                state = read_process(process.pid)
                if state is None or not state.stopped:
                    last_running = time.monotonic()
                elif time.monotonic() - last_running > client.hang_seconds:
                    raise StartError(
                        f"{name} was stopped by a signal while it loaded",
                        cause="stopped by a signal",
                        advice="another program sent SIGSTOP to it; try again",
                    )
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _MAX_PAUSE_SECONDS)
    except TimeoutError as error:
        diagnosis = process.diagnose()
        raise StartError(
            f"{name} was not ready after {limit_seconds:g} s" + (f": {diagnosis.cause}" if diagnosis.cause else ""),
            cause=diagnosis.cause or "not ready in time",
            advice=diagnosis.advice or "allow longer with TRILITHON_START_SECONDS",
            last_words=diagnosis.last_words,
        ) from error
    return time.monotonic_ns()


async def _not_started(process: Process, name: str, other_users: tuple[str, ...]) -> StartError:
    await process.wait()  # it counts the out-of-memory kills, which the diagnosis needs
    diagnosis = process.diagnose()
    return StartError(
        f"{name} did not start: {diagnosis.cause}",
        cause=diagnosis.cause,
        advice="; ".join(filter(None, (diagnosis.advice, *other_users))),
        last_words=diagnosis.last_words,
    )

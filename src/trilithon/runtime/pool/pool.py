"""Several models loaded within one budget of memory, each in a runner that requests take in turn."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from trilithon.engines.base import Placement
from trilithon.errors import EngineTimeout
from trilithon.runtime.memory_need import bytes_needed
from trilithon.runtime.opening import open_runner
from trilithon.runtime.pool.budget import Budget
from trilithon.runtime.pool.dispatch import Dispatcher
from trilithon.runtime.pool.loaded_model import LoadedModel, Open, State
from trilithon.runtime.pool.queue import Busy, PendingRequest
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["Busy", "Lease", "Loaded", "Pool"]

_RESTART_SECONDS = 5.0  # what a client is told to wait for a server that stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """`load_seconds` is what this request waited for the model to be loaded (0.0 when it was already), and
    `waited_seconds` what it waited for others beside that."""

    runner: Runner
    load_seconds: float
    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One runner as it is now. `size_bytes` is what it was seen to hold, or is expected to take while it loads;
    `expires_in_seconds` is None for never, and while somebody works with it what it will have then. `crashes` counts
    those of all runners that this model had."""

    key: str
    placement: Placement
    state: State
    users: int
    waiting: int
    size_bytes: int
    pid: int | None
    pinned: bool
    idle_seconds: float
    expires_in_seconds: float | None
    crashes: int
    load_seconds: float


class Pool:
    """Used within one event loop. `folder` is private and short enough for sockets (see `process.workspace`).

    A key names a model; it has one runner at most. `budget_bytes` None: measured anew whenever a model is to be
    loaded. A pin reserves its room, and wins over every keep-alive. `longest_wait_seconds` bounds the wait for a
    place, loading included.
    """

    def __init__(
        self,
        configuration: Configuration,
        folder: Path,
        *,
        budget_bytes: int | None = None,
        most_waiting: int = 512,
        keep_alive_seconds: float = 300.0,
        most_loaded: int | None = None,
        longest_wait_seconds: float | None = None,
        open_one: Open = open_runner,
    ):
        self._keep_alive_seconds = keep_alive_seconds
        self._longest_wait_seconds = longest_wait_seconds
        self._draining = False
        self._reading = asyncio.Lock()
        self._dispatcher = Dispatcher(
            configuration,
            folder,
            open_one,
            budget_bytes=budget_bytes,
            most_waiting=most_waiting,
            most_loaded=most_loaded,
            keep_alive_seconds=keep_alive_seconds,
        )

    @contextlib.asynccontextmanager
    async def lease(
        self, key: str, placement: Placement, *, caller: str, keep_alive_seconds: float | None = None
    ) -> AsyncIterator[Lease]:
        """A runner of `placement` to work with. `keep_alive_seconds` from its end on: 0 unloads it when it is idle,
        infinity never; the wish of the last lease that had one counts, and until there is one the pool's own.

        Raises Busy, StartError (and whatever else a start fails with), ModelError.
        """
        waiter = PendingRequest(
            key=key,
            placement=placement,
            need_bytes=await self._need(key, placement),
            caller=caller,
            keep_alive_seconds=self._kept(key, placement) if keep_alive_seconds is None else keep_alive_seconds,
            came=time.monotonic(),
            granted=asyncio.get_running_loop().create_future(),
        )
        self._admit(waiter)
        keeper = await self._granted(waiter)
        began = time.monotonic()
        load_seconds = max(0.0, keeper.ready_at - max(waiter.came, keeper.began))
        try:
            assert keeper.runner is not None
            waited_seconds = max(0.0, began - waiter.came - load_seconds)
            yield Lease(runner=keeper.runner, load_seconds=load_seconds, waited_seconds=waited_seconds)
            if not keeper.crashed:
                self._dispatcher.history(key).worked(time.monotonic() - began)
        except EngineTimeout as error:
            keeper.spoil(str(error))
            raise
        finally:
            keeper.release()
            self._dispatcher.settle()

    def _kept(self, key: str, placement: Placement) -> float:
        """What was wished before for this runner, unless that was to end it."""
        keeper = self._dispatcher.keepers.get(key)
        wished = keeper.keep_alive_seconds if keeper and keeper.placement == placement else 0.0
        return wished or self._keep_alive_seconds

    async def unload(self, key: str) -> bool:
        """End its runner, once those who work with it are done, and its pin; False when there is none. Those who wait
        have it loaded again."""
        self._dispatcher.pins.pop(key, None)
        keeper = self._dispatcher.keepers.get(key)
        if keeper is None:
            return False
        keeper.going = True
        self._dispatcher.settle()
        await asyncio.wait([keeper.task])
        return True

    def pin(self, key: str, placement: Placement) -> None:
        """Load it now, in the background, and whenever it is not there; never evict it. Where a request wants another
        placement of it, that one is pinned from then on. Reads the model's header, unless it was loaded before; raises
        ModelError, Busy, and StartError when it cannot fit beside the other pins."""
        if self._draining:
            raise _stopping()
        known = self._dispatcher.history(key).need_of(placement)
        need_bytes = bytes_needed(placement) if known is None else known
        refusal = self._dispatcher.refusal(key, placement, need_bytes)
        if refusal:
            raise refusal
        self._dispatcher.history(key).need = placement, need_bytes
        self._dispatcher.pins[key] = placement, need_bytes
        self._dispatcher.settle()

    def unpin(self, key: str) -> bool:
        """From now on it is kept as any other, for the pool's own time; False where it was not pinned."""
        if self._dispatcher.pins.pop(key, None) is None:
            return False
        self.keep(key, self._keep_alive_seconds)
        return True

    def keep(self, key: str, keep_alive_seconds: float) -> None:
        """Let it expire so many seconds from now, or from its last lease's end; 0 unloads it as soon as it is idle."""
        keeper = self._dispatcher.keepers.get(key)
        if keeper is not None:
            keeper.keep_alive_seconds, keeper.kept_from = keep_alive_seconds, time.monotonic()
            self._dispatcher.settle()

    async def drain(self, limit_seconds: float) -> None:
        """Take no new requests, refuse those that wait, let those at work finish within the limit, and end every
        child. Cancelled, it ends them at once."""
        self._draining = True
        tasks = self._dispatcher.close(_stopping())
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=limit_seconds)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    # -- what it is doing

    @property
    def waiting(self) -> int:
        """Requests without a place, those for which a model is being loaded included."""
        return len(self._dispatcher.room)

    @property
    def loads(self) -> int:
        return self._dispatcher.loads

    @property
    def unloads(self) -> int:
        return self._dispatcher.unloads

    @property
    def crashes(self) -> int:
        return self._dispatcher.crashes

    @property
    def evictions(self) -> int:
        return self._dispatcher.evictions

    @property
    def pinned(self) -> tuple[str, ...]:
        """Their keys, those that are not loaded just now included."""
        return tuple(self._dispatcher.pins)

    def budget(self) -> Budget | None:
        """The memory there is for models; None where the kernel does not say."""
        return self._dispatcher.budget()

    def loaded(self) -> tuple[Loaded, ...]:
        return tuple(self._describe(keeper) for keeper in self._dispatcher.keepers.values())

    def troubles(self) -> dict[str, str]:
        """Why a model that is not loaded failed last, by key, as long as nobody has seen it working since."""
        loaded = self._dispatcher.keepers
        histories = self._dispatcher.histories.items()
        return {key: history.reason for key, history in histories if history.reason and key not in loaded}

    def _describe(self, keeper: LoadedModel) -> Loaded:
        now, works = time.monotonic(), keeper.users > 0 or keeper.state == "loading"
        pinned = keeper.key in self._dispatcher.pins
        left = keeper.keep_alive_seconds if works else keeper.expires_at - now
        return Loaded(
            key=keeper.key,
            placement=keeper.placement,
            state=keeper.state,
            users=keeper.users,
            waiting=len(self._dispatcher.room.of(keeper.key)),
            size_bytes=keeper.size_bytes,
            pid=keeper.runner.process.pid if keeper.runner else None,
            pinned=pinned,
            idle_seconds=0.0 if works else now - keeper.last_used,
            expires_in_seconds=None if pinned or left == math.inf else max(0.0, left),
            crashes=self._dispatcher.history(keeper.key).crashes,
            load_seconds=keeper.load_seconds,
        )

    # -- coming and waiting

    async def _need(self, key: str, placement: Placement) -> int:
        history = self._dispatcher.history(key)
        known = history.need_of(placement)
        if known is not None:
            return known
        async with self._reading:  # a header takes some megabytes; many first requests need it once
            known = history.need_of(placement)
            if known is None:
                known = await asyncio.to_thread(bytes_needed, placement)
                history.need = placement, known
            return known

    def _admit(self, waiter: PendingRequest) -> None:
        """Into the queue, and on at once where there is a place. Raises Busy."""
        if self._draining:
            raise _stopping()
        keeper, room = self._dispatcher.keepers.get(waiter.key), self._dispatcher.room
        history = self._dispatcher.history(waiter.key)
        rest = history.rests(waiter.placement, time.monotonic())
        if rest and keeper is None:
            raise history.resting(waiter.key, rest)
        at_once = keeper is not None and keeper.has_place_for(waiter.placement) and not room.has(waiter.key)
        if not at_once and len(room) >= room.most:
            displaced = room.to_displace(waiter.caller)
            if displaced is None:
                raise self._full(waiter)
            self._dispatcher.refuse([displaced], self._full(displaced))
        room.add(waiter)
        self._dispatcher.settle()
        if len(room) > room.most:  # the place is withheld: the runner is about to make room for another model
            room.remove(waiter)
            raise self._full(waiter)

    async def _granted(self, waiter: PendingRequest) -> LoadedModel:
        try:
            async with asyncio.timeout(self._longest_wait_seconds):
                return await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
            raise Busy(
                f"{waiter.key}: no place after {self._longest_wait_seconds:g} s of waiting; come again later",
                retry_after_seconds=self._retry_after_seconds(waiter),
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: PendingRequest) -> None:
        self._dispatcher.room.remove(waiter)
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().release()  # its turn came at the very moment
        self._dispatcher.settle()

    def _retry_after_seconds(self, waiter: PendingRequest) -> float:
        ahead = len(self._dispatcher.room.of(waiter.key)) + 1
        return self._dispatcher.history(waiter.key).retry_after_seconds(ahead, waiter.placement.settings.slots)

    def _full(self, waiter: PendingRequest) -> Busy:
        return Busy(
            f"{self.waiting} requests are waiting already, and more are not taken; come again later",
            retry_after_seconds=self._retry_after_seconds(waiter),
        )


def _stopping() -> Busy:
    return Busy("the server is stopping; come again when it has restarted", retry_after_seconds=_RESTART_SECONDS)

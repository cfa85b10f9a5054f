"""Several models loaded within one memory budget, each in a runner that requests lease.

All loading and unloading happens in `Pool._settle`. It runs whenever something has changed and never awaits, so that
nothing can change between a decision and the action that follows from it."""

import asyncio
import contextlib
import itertools
import math
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from trilithon.engines.base import Placement
from trilithon.errors import EngineTimeout, TrilithonError
from trilithon.runtime.opening import open_runner
from trilithon.runtime.pool.budget import Budget, measured_budget
from trilithon.runtime.pool.history import Histories
from trilithon.runtime.pool.life import log_crashed, log_failed, log_leaving, log_loaded, log_loading
from trilithon.runtime.pool.loaded_model import Loaded, LoadedModel, Open
from trilithon.runtime.pool.planning import Demand, PoolSnapshot
from trilithon.runtime.pool.queue import Busy, PendingRequest, RequestQueue
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["Busy", "Lease", "Loaded", "Pool"]

_RESTART_SECONDS = 5.0  # Retry-After for clients of a server that stops
_MIN_TIMER_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """`load_seconds` is what this request waited for the model to be loaded (0.0 when it was already), and
    `waited_seconds` what it waited for other requests beside that."""

    runner: Runner
    load_seconds: float
    waited_seconds: float


class Pool:
    """Used within one event loop. `folder` is private and short enough for sockets (see `process.workspace`).

    A key names a model; it has one runner at most. `budget_bytes` None: measured whenever a model is to be loaded.
    A pin reserves memory, and overrides every keep-alive. `max_wait_seconds` bounds the wait for a lease, loading
    included. `loads`, `unloads`, `crashes`, `evictions`, `failed_loads` and
    `load_seconds` count from the start."""

    def __init__(
        self,
        configuration: Configuration,
        folder: Path,
        *,
        budget_bytes: int | None = None,
        max_waiting: int = 512,
        keep_alive_seconds: float = 300.0,
        max_loaded: int | None = None,
        max_wait_seconds: float | None = None,
        open_one: Open = open_runner,
    ):
        self.loads = self.unloads = self.crashes = self.evictions = self.failed_loads = 0
        self.load_seconds = 0.0
        self._configuration = configuration
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._keep_alive_seconds = keep_alive_seconds
        self._max_loaded = sys.maxsize if max_loaded is None else max_loaded
        self._max_wait_seconds = max_wait_seconds
        self._open_runner = open_one
        self._draining = False
        self._models: dict[str, LoadedModel] = {}
        self._pins: dict[str, tuple[Placement, int]] = {}
        self._queue = RequestQueue(max_waiting)
        self._histories = Histories()
        self._folder_numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = math.inf

    @contextlib.asynccontextmanager
    async def lease(
        self,
        key: str,
        placement: Placement,
        *,
        caller: str,
        keep_alive_seconds: float | None = None,
        needs_slot: bool = True,
    ) -> AsyncIterator[Lease]:
        """A runner of `placement` to work with. After the lease, the model is kept for `keep_alive_seconds`: 0 unloads
        it when it is idle, infinity never. None: as the last lease that had a value said, else the pool's own.
        Without `needs_slot` it waits for the model to be loaded, and for no other request.

        Raises Busy, StartError (and whatever else a start fails with), ModelError."""
        request = PendingRequest(
            key=key,
            placement=placement,
            need_bytes=await self._histories.read_need_bytes(key, placement),
            caller=caller,
            keep_alive_seconds=self._kept(key, placement) if keep_alive_seconds is None else keep_alive_seconds,
            arrived=time.monotonic(),
            granted=asyncio.get_running_loop().create_future(),
            needs_slot=needs_slot,
        )
        self._admit(request)
        model = await self._granted(request)
        began = time.monotonic()
        load_seconds = max(0.0, model.ready_at - max(request.arrived, model.began))
        try:
            assert model.runner is not None
            waited_seconds = max(0.0, began - request.arrived - load_seconds)
            yield Lease(runner=model.runner, load_seconds=load_seconds, waited_seconds=waited_seconds)
            if needs_slot and not model.crashed:
                self._histories.of(key).record_success(time.monotonic() - began)
        except EngineTimeout as error:
            model.spoil(str(error))
            raise
        finally:
            model.release(needs_slot=needs_slot)
            self._settle()

    def _kept(self, key: str, placement: Placement) -> float:
        """The keep-alive of the lease before, unless that was to unload the model."""
        model = self._models.get(key)
        kept = model.keep_alive_seconds if model and model.placement == placement else 0.0
        return kept or self._keep_alive_seconds

    async def unload(self, key: str) -> bool:
        """Remove its pin and end its runner, once the requests that use it are done; False when there is none.
        Requests that still wait load it again."""
        self._pins.pop(key, None)
        model = self._models.get(key)
        if model is None:
            return False
        model.unload_requested = True
        self._settle()
        await asyncio.wait([model.task])
        return True

    def pin(self, key: str, placement: Placement) -> None:
        """Load it now, in the background, and whenever it is not loaded; never evict it. When a request needs another
        placement of it, that one is pinned from then on. Reads the model's header, unless it was loaded before; raises
        ModelError, Busy, and StartError when it cannot fit beside the other pins."""
        if self._draining:
            raise _stopping()
        need_bytes = self._histories.need_bytes(key, placement)
        refusal = self._snapshot().refusal(key, placement, need_bytes)
        if refusal:
            raise refusal
        self._pins[key] = placement, need_bytes
        self._settle()

    def unpin(self, key: str) -> bool:
        """From now on it is kept like any other model, for the pool's own time; False when it was not pinned."""
        if self._pins.pop(key, None) is None:
            return False
        self.keep(key, self._keep_alive_seconds)
        return True

    def use(self, *, budget_bytes: int | None, keep_alive_seconds: float) -> None:
        """Another budget and another time of its own, which counts for loaded models that had the old one too."""
        before, self._keep_alive_seconds = self._keep_alive_seconds, keep_alive_seconds
        self._budget_bytes = budget_bytes
        for model in self._models.values():
            if model.keep_alive_seconds == before:
                model.keep_alive_seconds = keep_alive_seconds
        self._settle()

    def keep(self, key: str, keep_alive_seconds: float) -> None:
        """Let it expire so many seconds from now, or from the end of its last lease; 0 unloads it when it is idle."""
        model = self._models.get(key)
        if model is not None:
            model.keep_alive_seconds, model.kept_from = keep_alive_seconds, time.monotonic()
            self._settle()

    async def drain(self, limit_seconds: float) -> None:
        """Take no new requests, refuse those that wait, let the running ones finish within the limit, and end every
        child. When this is cancelled, it ends the children at once."""
        self._draining = True
        self._pins.clear()
        for key, _ in self._queue.queues():
            self._queue.refuse(self._queue.of(key), _stopping())
        self._settle()
        tasks = [model.task for model in self._models.values()]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=limit_seconds)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    # -- state

    @property
    def waiting(self) -> int:
        """Requests without a lease, including those for which a model is being loaded."""
        return len(self._queue)

    @property
    def pinned(self) -> tuple[str, ...]:
        """The keys of pinned models, loaded or not."""
        return tuple(self._pins)

    def budget(self) -> Budget | None:
        """The memory for models; None where the kernel does not report it."""
        if self._budget_bytes is not None:
            return Budget(now=self._budget_bytes, total=self._budget_bytes)
        return measured_budget(self._models.values())

    def placements(self) -> dict[str, Placement]:
        """By key, of the models that are loaded or are being loaded, except those that leave. `loaded` looks at their
        processes too, which takes a millisecond."""
        return {key: model.placement for key, model in self._models.items() if model.state != "leaving"}

    def loaded(self) -> tuple[Loaded, ...]:
        return tuple(
            model.describe(
                pinned=key in self._pins, waiting=len(self._queue.of(key)), crashes=self._histories.of(key).crashes
            )
            for key, model in self._models.items()
        )

    def last_errors(self) -> dict[str, str]:
        """Why models that are not loaded failed last, by key, unless they have worked since."""
        return self._histories.last_errors(except_of=self._models)

    def _snapshot(self) -> PoolSnapshot:
        return PoolSnapshot(
            models=tuple(
                model.snapshot(pinned=key in self._pins, requested=self._queue.has(key))
                for key, model in self._models.items()
            ),
            pins={key: need_bytes for key, (_, need_bytes) in self._pins.items()},
            budget=self.budget(),
            max_loaded=self._max_loaded,
            now=time.monotonic(),
        )

    # -- one request's wait for its lease

    def _admit(self, request: PendingRequest) -> None:
        """Put it into the queue, and grant it at once where possible. Raises Busy."""
        if self._draining:
            raise _stopping()
        model, queue = self._models.get(request.key), self._queue
        history = self._histories.of(request.key)
        retry_in = history.retry_in_seconds(request.placement, time.monotonic())
        if retry_in and model is None:
            raise history.busy(request.key, retry_in)
        at_once = model is not None and model.has_place_for(request.placement, needs_slot=request.needs_slot)
        at_once = at_once and not (request.needs_slot and queue.has(request.key))
        if not at_once and len(queue) >= queue.limit:
            displaced = queue.to_displace(request.caller)
            if displaced is None:
                raise self._queue_full(request)
            self._queue.refuse([displaced], self._queue_full(displaced))
        queue.add(request)
        self._settle()
        if len(queue) > queue.limit:  # its model takes no new requests: it makes room for another one
            queue.remove(request)
            raise self._queue_full(request)

    async def _granted(self, request: PendingRequest) -> LoadedModel:
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                return await request.granted
        except TimeoutError:
            self._give_up(request)
            raise Busy(
                f"{request.key}: no free slot within {self._max_wait_seconds:g} s; try again later",
                retry_after_seconds=self._retry_after_seconds(request),
            ) from None
        except asyncio.CancelledError:
            self._give_up(request)
            raise

    def _give_up(self, request: PendingRequest) -> None:
        self._queue.remove(request)
        granted = request.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().release(needs_slot=request.needs_slot)  # it was granted at the same moment
        self._settle()

    def _retry_after_seconds(self, request: PendingRequest) -> float:
        position = len(self._queue.of(request.key)) + 1
        return self._histories.of(request.key).retry_after_seconds(position, request.placement.settings.slots)

    def _queue_full(self, request: PendingRequest) -> Busy:
        return Busy(
            f"the queue is full: {self.waiting} requests are waiting; try again later",
            retry_after_seconds=self._retry_after_seconds(request),
        )

    # -- loading, granting, unloading

    def _settle(self) -> None:
        """Do everything that can be done now, and set a timer for what can be done later."""
        self._next_at = math.inf
        self._replace()
        full = self._load(self._demands(time.monotonic()))
        self._grant(full)
        self._unload(time.monotonic())
        self._set_timer()

    def _replace(self) -> None:
        """The next request may need another placement of the model than the loaded one."""
        for key, model in self._models.items():
            head = self._queue.head(key)
            if head is not None and head.placement != model.placement and model.state != "leaving":
                model.leave(f"a request needs {head.placement.name} with other settings")

    def _demands(self, now: float) -> list[Demand]:
        demands = [queue.demand() for key, queue in self._queue.queues() if key not in self._models]
        for key, (placement, need_bytes) in self._pins.items():
            if key in self._models or self._queue.has(key):
                continue
            if retry_in := self._histories.of(key).retry_in_seconds(placement, now):
                self._next_at = min(self._next_at, now + retry_in)
            else:
                demands.append(Demand(key, placement, need_bytes, self._keep_alive_seconds, math.inf))
        return demands

    def _load(self, demands: list[Demand]) -> set[str]:
        """The keys of models that get no new requests."""
        if not demands:
            return set()
        decisions = self._snapshot().decide(demands)
        for demand, error in decisions.refuse:
            self._histories.of(demand.key).last_error = str(error)
            self._queue.refuse(self._queue.of(demand.key, demand.placement), error)
            if self._queue.has(demand.key):  # for another placement, which may fit
                self._next_at = 0.0
        for demand in decisions.load:
            self._start(demand)
        for key in decisions.evict:
            self.evictions += 1
            self._models[key].leave("room is needed", evicted_for=decisions.evict_for)
        self._next_at = min(self._next_at, decisions.next_at)
        return decisions.full

    def _grant(self, full: set[str]) -> None:
        for key, queue in self._queue.queues():
            model = self._models.get(key)
            if model is None or key in full:
                continue
            for request in self._queue.of(key):
                if not request.needs_slot and model.has_place_for(request.placement, needs_slot=False):
                    self._queue.remove(request)
                    _grant_to(model, request)
            while queue and model.has_place_for(queue.head.placement):
                _grant_to(model, self._queue.take(key))

    def _unload(self, now: float) -> None:
        for key, model in self._models.items():
            unload_at = model.unload_at(needed=key in self._pins or self._queue.has(key))
            if self._draining or unload_at <= now:
                asked = "unload was requested" if model.unload_requested else "it was idle"
                model.leave("the server ends" if self._draining else asked)
            else:
                self._next_at = min(self._next_at, unload_at)

    def _set_timer(self) -> None:
        """Settle again at `_next_at`. A timer that fires earlier stays: that is cheaper than a new one every time."""
        if self._timer is not None and (self._next_at == math.inf or self._next_at < self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._next_at < math.inf:
            delay = max(self._next_at - time.monotonic(), _MIN_TIMER_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._settle()

    def _start(self, demand: Demand) -> None:
        folder = self._folder / str(next(self._folder_numbers))
        opening = self._open_runner(demand.placement, folder, self._configuration, None)
        model = LoadedModel(demand, folder, opening, lambda: self._on_loaded(demand.key))
        if demand.key in self._pins:
            self._pins[demand.key] = demand.placement, demand.need_bytes
        self._models[demand.key] = model
        log_loading(model, pinned=demand.key in self._pins, waiting=len(self._queue.of(demand.key)))
        model.task.add_done_callback(lambda task: self._on_ended(model, task))

    def _on_loaded(self, key: str) -> None:
        self.loads += 1
        self.load_seconds += self._models[key].load_seconds
        log_loaded(self._models[key])
        self._settle()

    def _on_ended(self, model: LoadedModel, task: asyncio.Task[None]) -> None:
        del self._models[model.key]
        error = None if task.cancelled() else task.exception()
        if model.crashed:
            self.crashes += 1
            self._histories.of(model.key).crashes += 1
            self._failed(model, model.crashed, None)
        elif error is not None:
            self.failed_loads += 1
            self._failed(model, str(error) or repr(error), error)
            if not isinstance(error, TrilithonError | OSError):  # a defect of Trilithon
                task.get_loop().call_exception_handler({"message": f"{model.key} failed", "exception": error})
        else:
            self.unloads += model.runner is not None
            log_leaving(model)
        self._settle()

    def _failed(self, model: LoadedModel, reason: str, error: BaseException | None) -> None:
        """Refuse the requests that wait for it, when it could not be started or has to back off."""
        history, now = self._histories.of(model.key), time.monotonic()
        history.record_failure(model.placement, reason, now)
        retry_in = history.retry_in_seconds(model.placement, now)
        (log_failed if error else log_crashed)(model, reason, retry_in)
        refusal = error or (history.busy(model.key, retry_in) if retry_in else None)
        if refusal is not None:
            self._queue.refuse(self._queue.of(model.key, model.placement), refusal)


def _grant_to(model: LoadedModel, request: PendingRequest) -> None:
    if not request.granted.done():  # else it was cancelled just now
        model.take(request.keep_alive_seconds, needs_slot=request.needs_slot)
        request.granted.set_result(model)


def _stopping() -> Busy:
    return Busy("the server is stopping; try again after it has restarted", retry_after_seconds=_RESTART_SECONDS)

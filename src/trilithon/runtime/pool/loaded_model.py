"""One loaded model of the pool. One task opens and closes its runner, whichever requests use it meanwhile."""

import asyncio
import contextlib
import contextvars
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from trilithon.board.processes import cpu_seconds
from trilithon.engines.base import Placement
from trilithon.runtime.handover_state import HandoverState
from trilithon.runtime.pool.budget import ProcessMemory, process_memory
from trilithon.runtime.pool.planning import Demand, ModelSnapshot, State
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["Loaded", "LoadedModel", "Open"]

Open = Callable[[Placement, Path, Configuration, Callable[[str], None] | None], AbstractAsyncContextManager[Runner]]

# Requests whose child has died notice it within this time, and need its log to say why.
_DEATH_NOTICE_SECONDS = 5.0
# Two models that do not fit together would be loaded anew for every request without a minimum residency: so many
# seconds, or so many times as long as the load took.
_MIN_RESIDENCY_SECONDS, _RESIDENCY_PER_LOAD = 1.0, 2.0
# How often an idle engine is looked at, and which part of a CPU is too much for one.
_LOOK_SECONDS, _BUSY = 10.0, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The state of a loaded model. `size_bytes` is the memory of its processes, or what it is expected to need while
    it loads. `expires_in_seconds` is None for never; while the model is in use, it is the time that it will have
    afterwards. `crashes` counts those of all runners that this model had.
    `handover` is None when the placement is none, and while the model loads."""

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
    handover: HandoverState | None = None


class LoadedModel:
    """Times are monotonic, in seconds. `crashed` says why it ended when nothing in the pool ended it; else empty.
    `unload_requested`: it is unloaded once the requests that wait for it now have had their leases."""

    def __init__(
        self, demand: Demand, folder: Path, opening: AbstractAsyncContextManager[Runner], on_loaded: Callable[[], None]
    ):
        """`opening` is entered at once, in a task; `on_loaded` is called when the runner is ready."""
        self.key = demand.key
        self.placement = demand.placement
        self.need_bytes = demand.need_bytes
        self.keep_alive_seconds = demand.keep_alive_seconds
        self.state: State = "loading"
        self.runner: Runner | None = None
        self.users = 0
        self._slots_taken = 0
        self.unload_requested = False
        self.crashed = self.left_because = self.evicted_for = ""
        self.began = self.ready_at = self.last_used = self.kept_from = time.monotonic()
        self._folder = folder
        self._opening = opening
        self._on_loaded = on_loaded
        self._leave = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()
        # In a context of its own: the runner does not belong to the request that came first.
        self.task = asyncio.create_task(self._run(), context=contextvars.Context())

    @property
    def load_seconds(self) -> float:
        return (time.monotonic() if self.runner is None else self.ready_at) - self.began

    @property
    def residency_ends(self) -> float:
        return self.ready_at + max(_MIN_RESIDENCY_SECONDS, _RESIDENCY_PER_LOAD * self.load_seconds)

    @property
    def expires_at(self) -> float:
        """Infinite while it is in use."""
        return math.inf if self.users else self.kept_from + self.keep_alive_seconds

    def unload_at(self, *, needed: bool) -> float:
        """Infinite for never. `needed`: it is pinned, or requests wait for it."""
        if self.unload_requested and (self.state == "ready" or not needed):
            return -math.inf
        return self.expires_at if self.state == "ready" and not needed else math.inf

    def snapshot(self, *, pinned: bool, requested: bool) -> ModelSnapshot:
        return ModelSnapshot(
            key=self.key,
            need_bytes=self.need_bytes,
            state=self.state,
            in_use=self.users > 0,
            requested=requested,
            pinned=pinned,
            last_used=self.last_used,
            residency_ends=self.residency_ends,
        )

    def describe(self, *, pinned: bool, waiting: int, crashes: int) -> Loaded:
        now, works = time.monotonic(), self.users > 0 or self.state == "loading"
        left = self.keep_alive_seconds if works else self.expires_at - now
        return Loaded(
            key=self.key,
            placement=self.placement,
            state=self.state,
            users=self.users,
            waiting=waiting,
            size_bytes=self.size_bytes,
            pid=self.runner.process.pid if self.runner else None,
            pinned=pinned,
            idle_seconds=0.0 if works else now - self.last_used,
            expires_in_seconds=None if pinned or left == math.inf else max(0.0, left),
            crashes=crashes,
            load_seconds=self.load_seconds,
            handover=self.runner.handover if self.runner else None,
        )

    @property
    def size_bytes(self) -> int:
        """The memory of its processes now. Device memory shows in no process: there, and while it loads, at least its
        estimated need."""
        used = sum(memory.anonymous_bytes + memory.mapped_bytes for memory in self._process_memory())
        return used if used and not self._has_device else max(used, self.need_bytes)

    @property
    def held_bytes(self) -> int | None:
        """What the machine would have more of without it, less the page cache, which counts as available anyway. None
        while it loads, when that keeps changing."""
        if self.runner is None:
            return None
        return self.need_bytes if self._has_device else sum(part.anonymous_bytes for part in self._process_memory())

    @property
    def _has_device(self) -> bool:
        prefill = self.placement.prefill
        return self.placement.unit != "cpu" or (prefill is not None and prefill.unit != "cpu")

    def _process_memory(self) -> list[ProcessMemory]:
        processes = () if self.runner is None else self.runner.processes
        return [memory for process in processes if (memory := process_memory(process.pid))]

    def has_place_for(self, placement: Placement, *, needs_slot: bool = True) -> bool:
        if self.state != "ready" or self.runner is None or placement != self.placement:
            return False
        alive = self.runner.process.returncode is None  # a request may notice a death before `_until_over` does
        return alive and (not needs_slot or self._slots_taken < self.placement.settings.slots)

    def take(self, keep_alive_seconds: float, *, needs_slot: bool = True) -> None:
        self.users += 1
        self._slots_taken += needs_slot
        self.keep_alive_seconds = keep_alive_seconds
        self._unused.clear()

    def release(self, *, needs_slot: bool = True) -> None:
        self.users -= 1
        self._slots_taken -= needs_slot
        self.last_used = self.kept_from = time.monotonic()
        if not self.users:
            self._unused.set()
            if self.state == "leaving":
                self._leave.set()

    def leave(self, reason: str, *, evicted_for: str = "") -> None:
        """Grant no more leases, and end once the present ones are released. `evicted_for` is the model that needs its
        memory. The first reason counts."""
        self.left_because = self.left_because or reason
        if self.left_because == reason:
            self.evicted_for = self.evicted_for or evicted_for
        if self.state == "loading":
            self.task.cancel()
        if not self.users:
            self._leave.set()
        self.state = "leaving"

    def spoil(self, reason: str) -> None:
        """It lives but is of no use: treat it as dead, once the present leases are released."""
        self.crashed = self.crashed or reason
        self.leave(reason)

    async def _run(self) -> None:
        try:
            async with self._opening as runner:
                self.ready_at = self.last_used = self.kept_from = time.monotonic()
                self.runner = runner
                if self.state == "loading":
                    self.state = "ready"
                    self._on_loaded()
                await self._until_over(runner)
        finally:
            self.state = "leaving"
            shutil.rmtree(self._folder, ignore_errors=True)  # the rest goes with the folder around it

    async def _until_over(self, runner: Runner) -> None:
        death = asyncio.create_task(runner.process.wait())
        death.add_done_callback(lambda _: self._leave.set())
        watch = asyncio.create_task(self._end_a_runaway(runner))
        try:
            await self._leave.wait()
            if self.crashed:
                await runner.process.stop(grace_seconds=0)  # it does not react
            elif death.done():
                await self._record_death(runner)
        finally:
            death.cancel()
            watch.cancel()
            await asyncio.wait([death, watch])

    async def _end_a_runaway(self, runner: Runner) -> None:
        """What a client has left may go on inside the engine for ever, as a chat template does: an engine that computes
        while no request and no slot is at work is ended. A process that is new, as a prefiller that was restarted, has
        used its time for loading."""
        before: dict[int, float] = {}
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            after = {process.pid: cpu_seconds(process.pid) for process in runner.processes}
            used = sum(seconds - before[pid] for pid, seconds in after.items() if pid in before)
            is_idle = not self.users and time.monotonic() - self.last_used >= _LOOK_SECONDS
            if is_idle and used > _BUSY * _LOOK_SECONDS and await runner.idle() and not self.users:
                self.spoil("it computed without a request")
            before = after

    async def _record_death(self, runner: Runner) -> None:
        """Keep the log until the requests that use it have read why it died."""
        self.state = "leaving"
        self.crashed = f"died: {runner.process.diagnose().cause}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_NOTICE_SECONDS):
                await self._unused.wait()

"""One runner of the pool, in one task of its own: what opens it closes it, whoever comes and goes meanwhile."""

import asyncio
import contextlib
import contextvars
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

from trilithon.engines.base import Placement
from trilithon.runtime.pool.budget import Resident, resident
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["LoadedModel", "Open", "State"]

Open = Callable[
    [Placement, Path, Configuration, Callable[[str], None] | None],
    AbstractAsyncContextManager[Runner],
]
State = Literal["loading", "ready", "leaving"]

# Who works with a child that has died finds that out in this time, and wants its log to say why.
_FAREWELL_SECONDS = 5.0
# A model that others push out serves for so long first, or for so many times as long as its loading took: two models
# that do not fit together would else be loaded anew for every request.
_LEAST_TENURE_SECONDS, _TENURE = 1.0, 2.0


class LoadedModel:
    """Times are monotonic, in seconds. `crashed` says how it ended when nobody asked it to, empty otherwise."""

    def __init__(
        self,
        key: str,
        placement: Placement,
        need_bytes: int,
        folder: Path,
        opening: AbstractAsyncContextManager[Runner],
        keep_alive_seconds: float,
        loaded: Callable[[], None],
    ):
        """`opening` is entered at once, in a task; `loaded` is called when it is ready."""
        self.key = key
        self.placement = placement
        self.need_bytes = need_bytes
        self.keep_alive_seconds = keep_alive_seconds
        self.state: State = "loading"
        self.runner: Runner | None = None
        self.users = 0
        self.going = False
        """It is to leave as soon as those who wait for it now had their turn."""
        self.crashed = ""
        self.began = self.ready_at = self.last_used = self.kept_from = time.monotonic()
        self._folder = folder
        self._opening = opening
        self._loaded = loaded
        self._leave = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        # In a context of its own: whoever came first is not whom the runner belongs to.
        self.task = asyncio.create_task(self._keep(), context=contextvars.Context())

    @property
    def load_seconds(self) -> float:
        return (time.monotonic() if self.runner is None else self.ready_at) - self.began

    @property
    def tenure_ends(self) -> float:
        return self.ready_at + max(_LEAST_TENURE_SECONDS, _TENURE * self.load_seconds)

    @property
    def expires_at(self) -> float:
        """Infinite while somebody works with it."""
        return math.inf if self.users else self.kept_from + self.keep_alive_seconds

    @property
    def size_bytes(self) -> int:
        """What its processes hold of the memory now. What devices hold shows in no process: there, and while it
        loads, at least what it is expected to take."""
        seen = sum(each.anonymous_bytes + each.mapped_bytes for each in self._resident())
        return seen if seen and not self._has_device else max(seen, self.need_bytes)

    @property
    def held_bytes(self) -> int | None:
        """What the machine would have more of without it, the page cache left out: that counts as available anyway.
        None while it loads, when that changes from moment to moment."""
        if self.runner is None:
            return None
        return self.need_bytes if self._has_device else sum(each.anonymous_bytes for each in self._resident())

    @property
    def _has_device(self) -> bool:
        prefill = self.placement.prefill
        return self.placement.unit != "cpu" or (prefill is not None and prefill.unit != "cpu")

    def _resident(self) -> list[Resident]:
        processes = () if self.runner is None else self.runner.processes
        return [found for process in processes if (found := resident(process.pid))]

    def has_place_for(self, placement: Placement) -> bool:
        if self.state != "ready" or self.runner is None or placement != self.placement:
            return False
        alive = self.runner.process.returncode is None  # who asked last may know that before our own watch does
        return alive and self.users < self.placement.settings.slots

    def take(self, keep_alive_seconds: float) -> None:
        self.users += 1
        self.keep_alive_seconds = keep_alive_seconds
        self._empty.clear()

    def release(self) -> None:
        self.users -= 1
        self.last_used = self.kept_from = time.monotonic()
        if not self.users:
            self._empty.set()
            if self.state == "leaving":
                self._leave.set()

    def leave(self) -> None:
        """Take nobody any more, and end once those who are there have left."""
        if self.state == "loading":
            self.task.cancel()
        if not self.users:
            self._leave.set()
        self.state = "leaving"

    def spoil(self, reason: str) -> None:
        """It lives and is of no use: as if it had died, once everybody has left."""
        self.crashed = self.crashed or reason
        self.leave()

    async def _keep(self) -> None:
        try:
            async with self._opening as runner:
                self.ready_at = self.last_used = self.kept_from = time.monotonic()
                self.runner = runner
                if self.state == "loading":
                    self.state = "ready"
                    self._loaded()
                await self._until_over(runner)
        finally:
            self.state = "leaving"
            shutil.rmtree(self._folder, ignore_errors=True)  # what resists goes with the folder around it

    async def _until_over(self, runner: Runner) -> None:
        watch = asyncio.create_task(runner.process.wait())
        watch.add_done_callback(lambda _: self._leave.set())
        try:
            await self._leave.wait()
            if self.crashed:
                await runner.process.stop(grace_seconds=0)  # it would not listen
            elif watch.done():
                await self._bury(runner)
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def _bury(self, runner: Runner) -> None:
        self.state = "leaving"
        self.crashed = f"died: {runner.process.diagnose().cause}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._empty.wait()

"""The board's last minutes, for all who look at the page: one sampler however many browsers, none when nobody looks."""

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from trilithon.board.sensors.probes import Quantity
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.window import Window
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.runtime.pool.pool import Pool
from trilithon.serve.service import Service
from trilithon.web.board.chip import values_of
from trilithon.web.context import AppContext

__all__ = ["KEPT_SECONDS", "PERIOD_SECONDS", "Moment", "Watch", "watch_of"]

KEPT_SECONDS = 300.0
PERIOD_SECONDS = 1.0
# A browser asks once a second; one that has not for so long has gone, or sleeps.
_PATIENCE_SECONDS = 4.0
_FRAMES = 4  # a look takes the newest


@dataclass(frozen=True, slots=True)
class Moment:
    """`at_ns` is monotonic; `values` are by quantity and name, energy made into power. `running` and `waiting` are
    requests."""

    at_ns: int
    values: Mapping[tuple[Quantity, str], float]
    running: int
    waiting: int


class Watch:
    """For one event loop. What came before a pause is kept as long as it is young enough."""

    def __init__(
        self,
        pool: Pool,
        board: Board,
        machine: Machine = THIS_MACHINE,
        *,
        period_seconds: float = PERIOD_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ):
        self.pool = pool
        self.board = board
        self.machine = machine
        self.closed: tuple[str, ...] = ()
        self.hung = ""
        self.blind = False
        self._period_seconds = period_seconds
        self._patience_seconds = patience_seconds
        self._moments: deque[Moment] = deque(maxlen=round(KEPT_SECONDS / period_seconds))
        self._asked = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def works(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def latest(self) -> Moment | None:
        """None before the first values, and after a pause."""
        if not self._moments or time.monotonic_ns() - self._moments[-1].at_ns > self._patience_seconds * 1e9:
            return None
        return self._moments[-1]

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Of the last five minutes, in the order of time."""
        since_ns = time.monotonic_ns() - round(KEPT_SECONDS * 1e9)
        return tuple(moment for moment in self._moments if moment.at_ns >= since_ns)

    def ask(self) -> None:
        """Somebody looks: sampling begins, or goes on."""
        self._asked = time.monotonic()
        if not self.works:
            self._task = asyncio.create_task(self._sample(), name="board page")

    async def _sample(self) -> None:
        sampler = Sampler(
            self.machine, period_seconds=self._period_seconds, whole_frames=True, each_cpu=True, most_frames=_FRAMES
        )
        window = Window(sampler)
        sampler.start()
        try:
            while time.monotonic() - self._asked < self._patience_seconds:
                await asyncio.sleep(self._period_seconds / 4)
                # Mostly at once; where a file does not answer it waits for that one.
                if await asyncio.to_thread(window.look):
                    self._keep(window)
        finally:
            await asyncio.to_thread(sampler.__exit__, None, None, None)

    def _keep(self, window: Window) -> None:
        self.closed, self.hung, self.blind = window.closed, window.hung, not window.can_see
        if window.at_ns is not None:
            loaded = self.pool.loaded()
            running = sum(model.users for model in loaded)
            self._moments.append(Moment(window.at_ns, values_of(window.readings()), running, self.pool.waiting))


_WATCHES: weakref.WeakKeyDictionary[Service, Watch] = weakref.WeakKeyDictionary()


def watch_of(context: AppContext, machine: Machine = THIS_MACHINE) -> Watch:
    """One per server: made when first asked for, and gone with its service."""
    watch = _WATCHES.get(context.service)
    if watch is None:
        watch = _WATCHES[context.service] = Watch(context.service.pool, context.board, machine)
    return watch

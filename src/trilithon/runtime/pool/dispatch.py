"""Which model of the pool is loaded, who gets a place, who must go.

All of it is decided in `Dispatcher.settle`, which looks at everything anew whenever something has changed and never
waits itself: nothing can happen between a look and the step that follows from it.
"""

import asyncio
import itertools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trilithon.engines.base import Placement
from trilithon.errors import StartError, TrilithonError
from trilithon.runtime.pool.budget import Budget, fewest, measured_budget
from trilithon.runtime.pool.history import History
from trilithon.runtime.pool.loaded_model import LoadedModel, Open
from trilithon.runtime.pool.queue import Busy, PendingRequest, RequestQueue
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["Dispatcher"]

_SHORTEST_ALARM_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class _Claim:
    """A model that is to be loaded, for somebody who has waited since `came`, or for nobody but its pin."""

    key: str
    placement: Placement
    need_bytes: int
    keep_alive_seconds: float
    came: float


class Dispatcher:
    """`pins` are placements and what they need, by key. Used within one event loop."""

    def __init__(
        self,
        configuration: Configuration,
        folder: Path,
        open_one: Open,
        *,
        budget_bytes: int | None,
        most_waiting: int,
        most_loaded: int | None,
        keep_alive_seconds: float,
    ):
        self.loads = self.unloads = self.crashes = self.evictions = 0
        self.keep_alive_seconds = keep_alive_seconds
        self.keepers: dict[str, LoadedModel] = {}
        self.pins: dict[str, tuple[Placement, int]] = {}
        self.room = RequestQueue(most_waiting)
        self.histories: dict[str, History] = {}
        self._closing = False
        self._configuration = configuration
        self._folder = folder
        self._open_one = open_one
        self._budget_bytes = budget_bytes
        self._most_loaded = sys.maxsize if most_loaded is None else most_loaded
        self._numbers = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._due = math.inf

    def history(self, key: str) -> History:
        return self.histories.setdefault(key, History())

    def refuse(self, waiters: list[PendingRequest], error: BaseException) -> None:
        for waiter in waiters:
            self.room.remove(waiter)
            waiter.refuse(error)

    def close(self, reason: Busy) -> list[asyncio.Task[None]]:
        """Start nothing any more, and end everything that is idle or will be; the tasks that do so."""
        self._closing = True
        self.pins.clear()
        for _, queue in self.room.queues():
            self.refuse(list(queue), reason)
        self.settle()
        return [keeper.task for keeper in self.keepers.values()]

    def settle(self) -> None:
        """Everything that can be done now: load, evict, hand out, let go."""
        now = time.monotonic()
        self._due = math.inf
        self._replace()
        claims = self._claims(now)
        withheld = self._load(claims, now) if claims else set()
        self._hand_out(withheld)
        self._let_go(now)
        self._set_alarm(self._due)

    def _replace(self) -> None:
        """Whoever is next may want another placement of the model than is loaded."""
        for key, keeper in self.keepers.items():
            head = self.room.head(key)
            if head is not None and head.placement != keeper.placement and keeper.state != "leaving":
                keeper.leave()

    def _claims(self, now: float) -> list[_Claim]:
        """What is to be loaded: first for who waits longest, then the pinned ones for which nobody waits."""
        claims = [
            _Claim(key, queue.head.placement, queue.head.need_bytes, queue.head.keep_alive_seconds, queue.oldest)
            for key, queue in self.room.queues()
            if key not in self.keepers
        ]
        for key, (placement, need_bytes) in self.pins.items():
            if key in self.keepers or self.room.has(key):
                continue
            if rest := self.history(key).rests(placement, now):
                self._due = min(self._due, now + rest)
            else:
                claims.append(_Claim(key, placement, need_bytes, self.keep_alive_seconds, math.inf))
        return sorted(claims, key=lambda claim: claim.came)

    def _load(self, claims: list[_Claim], now: float) -> set[str]:
        """Start what there is room for, in the order of the claims. The first one that has to wait makes the others
        wait too, or small models could keep a large one out for ever. The keys that are to take nobody new."""
        budget = self.budget()
        for claim in claims:
            refusal = self._refusal(claim.key, claim.placement, claim.need_bytes, budget)
            if refusal:
                self.history(claim.key).reason = str(refusal)
                same = [each for each in self.room.of(claim.key) if each.placement == claim.placement]
                self.refuse(same, refusal)
                self._due = now if self.room.has(claim.key) else self._due  # others want another placement of it
                continue
            counted = sum(keeper.need_bytes for keeper in self.keepers.values())
            missing_bytes = 0 if budget is None else claim.need_bytes + counted - budget.now
            missing_places = len(self.keepers) + 1 - self._most_loaded
            if missing_bytes > 0 or missing_places > 0:
                return self._make_room(missing_bytes, missing_places, now)
            self._start(claim)
        return set()

    def _make_room(self, missing_bytes: int, missing_places: int, now: float) -> set[str]:
        """Evict what is idle, the least recently used first; where that is not enough, the keys of those that are to
        take nobody new, so that they will be idle."""
        leaving = [keeper for keeper in self.keepers.values() if keeper.state == "leaving"]
        missing_bytes -= sum(keeper.need_bytes for keeper in leaving)
        missing_places -= len(leaving)
        candidates = [keeper for keeper in self.keepers.values() if self._may_go(keeper)]
        candidates.sort(key=lambda keeper: (self._is_busy(keeper, now), keeper.last_used))
        chosen = fewest(candidates, missing_bytes, missing_places) or []
        busy = [keeper for keeper in chosen if self._is_busy(keeper, now)]
        if not busy:
            for keeper in chosen:
                self.evictions += 1
                keeper.leave()
        self._due = min([self._due, *(keeper.tenure_ends for keeper in busy if keeper.tenure_ends > now)])
        return {keeper.key for keeper in busy if keeper.tenure_ends <= now}

    def _may_go(self, keeper: LoadedModel) -> bool:
        """A load goes on as long as somebody waits for it."""
        wanted = keeper.state == "loading" and self.room.has(keeper.key)
        return keeper.state != "leaving" and keeper.key not in self.pins and not wanted

    def _is_busy(self, keeper: LoadedModel, now: float) -> bool:
        return keeper.users > 0 or (self.room.has(keeper.key) and keeper.tenure_ends > now)

    def _hand_out(self, withheld: set[str]) -> None:
        for key, queue in self.room.queues():
            keeper = self.keepers.get(key)
            while keeper is not None and key not in withheld and queue and keeper.has_place_for(queue.head.placement):
                waiter = self.room.take(key)
                if not waiter.granted.done():  # cancelled a moment ago
                    keeper.take(waiter.keep_alive_seconds)
                    waiter.granted.set_result(keeper)

    def _let_go(self, now: float) -> None:
        for key, keeper in self.keepers.items():
            if keeper.state == "leaving":
                continue
            wanted = key in self.pins or self.room.has(key)
            if self._closing or (keeper.going and (keeper.state == "ready" or not wanted)):
                keeper.leave()
            elif keeper.state == "ready" and not wanted:
                if keeper.expires_at <= now:
                    keeper.leave()
                else:
                    self._due = min(self._due, keeper.expires_at)

    def _set_alarm(self, due: float) -> None:
        """Settle again then. One that would ring earlier is left as it is: it costs less than a new one each time."""
        if self._alarm is not None and (due == math.inf or due < self._alarm.when()):
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None and due < math.inf:
            delay = max(due - time.monotonic(), _SHORTEST_ALARM_SECONDS)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self.settle()

    # -- runners come and go

    def _start(self, claim: _Claim) -> None:
        folder = self._folder / str(next(self._numbers))
        keeper = LoadedModel(
            claim.key,
            claim.placement,
            claim.need_bytes,
            folder,
            self._open_one(claim.placement, folder, self._configuration, None),
            claim.keep_alive_seconds,
            self._loaded,
        )
        if claim.key in self.pins:
            self.pins[claim.key] = claim.placement, claim.need_bytes
        self.keepers[claim.key] = keeper
        keeper.task.add_done_callback(lambda task: self._gone(keeper, task))

    def _loaded(self) -> None:
        self.loads += 1
        self.settle()

    def _gone(self, keeper: LoadedModel, task: asyncio.Task[None]) -> None:
        del self.keepers[keeper.key]
        error = None if task.cancelled() else task.exception()
        if keeper.crashed:
            self.crashes += 1
            self.history(keeper.key).crashes += 1
            self._failed(keeper, keeper.crashed, None)
        elif error is not None:
            self._failed(keeper, str(error) or repr(error), error)
            if not isinstance(error, TrilithonError | OSError):  # a mistake of ours, which somebody should read
                task.get_loop().call_exception_handler({"message": f"{keeper.key} failed", "exception": error})
        elif keeper.runner is not None:
            self.unloads += 1
        self.settle()

    def _failed(self, keeper: LoadedModel, reason: str, error: BaseException | None) -> None:
        """Those who wait for it hear the error, where it could not be started; and all, that it rests now."""
        history = self.history(keeper.key)
        now = time.monotonic()
        history.failed(keeper.placement, reason, now)
        same = [each for each in self.room.of(keeper.key) if each.placement == keeper.placement]
        rest = history.rests(keeper.placement, now)
        if error is not None:
            self.refuse(same, error)
        elif rest:
            self.refuse(same, history.resting(keeper.key, rest))

    # -- memory

    def budget(self) -> Budget | None:
        if self._budget_bytes is not None:
            return Budget(now=self._budget_bytes, whole=self._budget_bytes)
        return measured_budget(self.keepers.values())

    def refusal(self, key: str, placement: Placement, need_bytes: int) -> StartError | None:
        """Why it could never be loaded, whatever else is unloaded; None when it could."""
        return self._refusal(key, placement, need_bytes, self.budget())

    def _refusal(self, key: str, placement: Placement, need_bytes: int, budget: Budget | None) -> StartError | None:
        pinned = [need for other, (_, need) in self.pins.items() if other != key]
        if len(pinned) >= self._most_loaded:
            return StartError(
                f"{key} is refused: {len(pinned)} models are pinned, and no more than that may be loaded",
                cause="every place is pinned",
                advice="pin fewer models, or allow more to be loaded",
            )
        if budget is None or need_bytes + sum(pinned) <= budget.whole:
            return None
        taken = f", of which pinned models have {format_bytes(sum(pinned))}" if pinned else ""
        return StartError(
            f"{key} needs about {format_bytes(need_bytes)} of memory as {placement.name}, and models have "
            f"{format_bytes(budget.whole)}{taken}",
            cause="not enough memory",
            advice="choose a smaller quantization or a shorter context, or give models more memory",
        )

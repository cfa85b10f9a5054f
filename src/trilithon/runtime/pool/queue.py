"""Those who wait for a runner: callers in turn, whatever many one of them asks, and a bound on all of them."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from trilithon.engines.base import Placement
from trilithon.errors import TrilithonError
from trilithon.runtime.pool.loaded_model import LoadedModel

__all__ = ["Busy", "FairQueue", "PendingRequest", "RequestQueue"]


class Busy(TrilithonError):
    """Not now: the queue is full, the wait was too long, or a runner rests after failures."""

    def __init__(self, message: str, *, retry_after_seconds: float):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRequest:
    """One lease to be. `came` is monotonic, in seconds; `need_bytes` is what its placement takes."""

    key: str
    placement: Placement
    need_bytes: int
    caller: str
    keep_alive_seconds: float
    came: float
    granted: asyncio.Future[LoadedModel]

    def refuse(self, error: BaseException) -> None:
        if not self.granted.done():
            self.granted.set_exception(error)


class FairQueue:
    """Round robin over callers, and each caller's own in the order in which they came. Never empty when iterated."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[PendingRequest]] = {}  # who is next stands first

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[PendingRequest]:
        return (waiter for own in self._callers.values() for waiter in own)

    @property
    def head(self) -> PendingRequest:
        return next(iter(self._callers.values()))[0]

    @property
    def oldest(self) -> float:
        return min(own[0].came for own in self._callers.values())

    def add(self, waiter: PendingRequest) -> None:
        self._callers.setdefault(waiter.caller, deque()).append(waiter)

    def take(self) -> PendingRequest:
        caller = next(iter(self._callers))
        own = self._callers.pop(caller)
        waiter = own.popleft()
        if own:
            self._callers[caller] = own  # at the end of the round
        return waiter

    def remove(self, waiter: PendingRequest) -> None:
        own = self._callers[waiter.caller]
        own.remove(waiter)
        if not own:
            del self._callers[waiter.caller]


class RequestQueue:
    """A queue per key; `most` bounds them all together."""

    def __init__(self, most: int):
        self.most = most
        self._queues: dict[str, FairQueue] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def queues(self) -> list[tuple[str, FairQueue]]:
        return list(self._queues.items())

    def of(self, key: str) -> list[PendingRequest]:
        return list(self._queues.get(key, ()))

    def head(self, key: str) -> PendingRequest | None:
        return self._queues[key].head if key in self._queues else None

    def has(self, key: str) -> bool:
        return key in self._queues

    def add(self, waiter: PendingRequest) -> None:
        self._queues.setdefault(waiter.key, FairQueue()).add(waiter)

    def take(self, key: str) -> PendingRequest:
        waiter = self._queues[key].take()
        self._forget_empty(key)
        return waiter

    def remove(self, waiter: PendingRequest) -> None:
        """Nothing where it has left already."""
        if waiter in self.of(waiter.key):
            self._queues[waiter.key].remove(waiter)
            self._forget_empty(waiter.key)

    def to_displace(self, caller: str) -> PendingRequest | None:
        """The youngest of whoever has most in a room that is full; None where `caller` has as many as anybody."""
        everybody = [waiter for queue in self._queues.values() for waiter in queue]
        counts = Counter(waiter.caller for waiter in everybody)
        greediest, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if most <= counts[caller] + 1:
            return None
        return max((waiter for waiter in everybody if waiter.caller == greediest), key=lambda waiter: waiter.came)

    def _forget_empty(self, key: str) -> None:
        if not self._queues[key]:
            del self._queues[key]

"""Requests that wait for a runner: callers are served in turn, however many requests one of them has."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from trilithon.engines.base import Placement
from trilithon.errors import TrilithonError
from trilithon.runtime.pool.loaded_model import LoadedModel
from trilithon.runtime.pool.planning import Demand

__all__ = ["Busy", "FairQueue", "PendingRequest", "RequestQueue"]


class Busy(TrilithonError):
    """Not now: the queue is full, the wait was too long, or a model is not started again yet after failures."""

    def __init__(self, message: str, *, retry_after_seconds: float):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRequest:
    """`arrived` is monotonic, in seconds; `need_bytes` is the memory that its placement needs; `needs_slot`: it
    evaluates or generates tokens; others are granted whenever the model is loaded. `granted` is set to the
    model that it may use."""

    key: str
    placement: Placement
    need_bytes: int
    caller: str
    keep_alive_seconds: float
    arrived: float
    granted: asyncio.Future[LoadedModel]
    needs_slot: bool = True

    def refuse(self, error: BaseException) -> None:
        if not self.granted.done():
            self.granted.set_exception(error)


class FairQueue:
    """Round robin over callers; the requests of one caller in the order of arrival. Never empty when iterated."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[PendingRequest]] = {}  # the next one is first

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[PendingRequest]:
        return (request for requests in self._callers.values() for request in requests)

    @property
    def head(self) -> PendingRequest:
        return next(iter(self._callers.values()))[0]

    @property
    def oldest(self) -> float:
        return min(requests[0].arrived for requests in self._callers.values())

    def add(self, request: PendingRequest) -> None:
        self._callers.setdefault(request.caller, deque()).append(request)

    def take(self) -> PendingRequest:
        caller = next(iter(self._callers))
        requests = self._callers.pop(caller)
        request = requests.popleft()
        if requests:
            self._callers[caller] = requests  # at the end of the round
        return request

    def remove(self, request: PendingRequest) -> None:
        requests = self._callers[request.caller]
        requests.remove(request)
        if not requests:
            del self._callers[request.caller]

    def demand(self) -> Demand:
        head = self.head
        return Demand(head.key, head.placement, head.need_bytes, head.keep_alive_seconds, self.oldest)


class RequestQueue:
    """One queue per key; `limit` bounds them all together."""

    def __init__(self, limit: int):
        self.limit = limit
        self._queues: dict[str, FairQueue] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def queues(self) -> list[tuple[str, FairQueue]]:
        return list(self._queues.items())

    def of(self, key: str, placement: Placement | None = None) -> list[PendingRequest]:
        """The requests for a key; for one placement of it, when that is given."""
        requests = self._queues.get(key, ())
        return [request for request in requests if placement in (None, request.placement)]

    def head(self, key: str) -> PendingRequest | None:
        return self._queues[key].head if key in self._queues else None

    def has(self, key: str) -> bool:
        return key in self._queues

    def add(self, request: PendingRequest) -> None:
        self._queues.setdefault(request.key, FairQueue()).add(request)

    def take(self, key: str) -> PendingRequest:
        request = self._queues[key].take()
        self._drop_empty(key)
        return request

    def remove(self, request: PendingRequest) -> None:
        """Does nothing when the request has left already."""
        if request in self.of(request.key):
            self._queues[request.key].remove(request)
            self._drop_empty(request.key)

    def refuse(self, requests: list[PendingRequest], error: BaseException) -> None:
        for request in requests:
            self.remove(request)
            request.refuse(error)

    def to_displace(self, caller: str) -> PendingRequest | None:
        """When the queue is full: the newest request of the caller that has most; None when `caller` has as many."""
        requests = [request for queue in self._queues.values() for request in queue]
        counts = Counter(request.caller for request in requests)
        greediest, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if most <= counts[caller] + 1:
            return None
        return max((request for request in requests if request.caller == greediest), key=lambda it: it.arrived)

    def _drop_empty(self, key: str) -> None:
        if not self._queues[key]:
            del self._queues[key]

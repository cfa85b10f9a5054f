"""What the pool remembers of a model from one runner to the next: its need, its failures, how long requests take."""

import asyncio
import math
from collections.abc import Container
from dataclasses import dataclass

from trilithon.engines.base import Placement
from trilithon.runtime.memory_need import bytes_needed
from trilithon.runtime.pool.queue import Busy

__all__ = ["Histories", "History", "backoff_seconds"]

_MAX_BACKOFF_SECONDS = 60.0
_NEWEST_WEIGHT = 0.2
# The duration of a request before one has ended, and the bounds of Retry-After.
_UNKNOWN_SERVICE_SECONDS = 2.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 120.0


def backoff_seconds(failures: int) -> float:
    """0, 1, 2, 4 … 60 after so many failures in a row: one may be chance, and a driver that fails at every start must
    not keep a board busy with loading."""
    return 0.0 if failures < 2 else min(2.0 ** min(failures - 2, 16), _MAX_BACKOFF_SECONDS)


@dataclass(slots=True)
class History:
    """`need` is that of the placement that was requested last; `last_error` is empty once the model has worked again.
    Times are monotonic, in seconds."""

    need: tuple[Placement, int] | None = None
    crashes: int = 0
    last_error: str = ""
    _failed: Placement | None = None
    _failures_in_a_row: int = 0
    _retry_at: float = -math.inf
    _service_seconds: float | None = None

    def need_of(self, placement: Placement) -> int | None:
        return self.need[1] if self.need and self.need[0] == placement else None

    def record_failure(self, placement: Placement, error: str, now: float) -> None:
        if placement != self._failed:
            self._failed, self._failures_in_a_row = placement, 0
        self._failures_in_a_row += 1
        self._retry_at = now + backoff_seconds(self._failures_in_a_row)
        self.last_error = error

    def record_success(self, seconds: float) -> None:
        self._failed, self.last_error = None, ""
        before = self._service_seconds
        self._service_seconds = seconds if before is None else before + _NEWEST_WEIGHT * (seconds - before)

    def retry_in_seconds(self, placement: Placement, now: float) -> float:
        """Until it may be started again. Another placement of the same model did not fail."""
        return max(0.0, self._retry_at - now) if placement == self._failed else 0.0

    def busy(self, key: str, seconds: float) -> Busy:
        return Busy(f"{key} is not started again for {seconds:.1f} s: {self.last_error}", retry_after_seconds=seconds)

    def retry_after_seconds(self, waiting: int, slots: int) -> float:
        """When the requests that wait now will have been served."""
        service = _UNKNOWN_SERVICE_SECONDS if self._service_seconds is None else self._service_seconds
        return min(max(service * waiting / max(slots, 1), _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)


class Histories:
    def __init__(self) -> None:
        self._histories: dict[str, History] = {}
        self._reading_header = asyncio.Lock()

    def of(self, key: str) -> History:
        return self._histories.setdefault(key, History())

    def need_bytes(self, key: str, placement: Placement) -> int:
        """Reads the model's header, unless the need is known. Raises ModelError."""
        history = self.of(key)
        known = history.need_of(placement)
        if known is None:
            known = bytes_needed(placement)
            history.need = placement, known
        return known

    async def read_need_bytes(self, key: str, placement: Placement) -> int:
        """`need_bytes`, with the header read in a thread: it takes some megabytes, and many first requests need it
        once. Requests keep their order."""
        history = self.of(key)
        if history.need_of(placement) is None:
            async with self._reading_header:
                if history.need_of(placement) is None:
                    history.need = placement, await asyncio.to_thread(bytes_needed, placement)
        return self.need_bytes(key, placement)

    def last_errors(self, except_of: Container[str]) -> dict[str, str]:
        """By key, of the models that failed and have not worked since."""
        histories = self._histories.items()
        return {key: history.last_error for key, history in histories if history.last_error and key not in except_of}

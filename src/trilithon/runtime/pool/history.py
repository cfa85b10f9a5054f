"""What the pool remembers of a model from one runner to the next: its need, its failures, how long requests take."""

import math
from dataclasses import dataclass

from trilithon.engines.base import Placement
from trilithon.runtime.pool.queue import Busy

__all__ = ["History", "rest_seconds"]

_LONGEST_REST_SECONDS = 60.0
_NEWEST_WEIGHT = 0.2
# Where no request has ended yet, and bounds for what a client is told.
_UNKNOWN_SERVICE_SECONDS = 2.0
_SHORTEST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 120.0


def rest_seconds(failures: int) -> float:
    """0, 1, 2, 4 … 60 after so many in a row: one may be bad luck, and a driver that fails at every start must not
    keep a board busy with loading."""
    return 0.0 if failures < 2 else min(2.0 ** min(failures - 2, 16), _LONGEST_REST_SECONDS)


@dataclass(slots=True)
class History:
    """`need` is of the placement that was asked for last; `reason` says why it failed last, as long as it rests or
    was not seen working since. Times are monotonic, in seconds."""

    need: tuple[Placement, int] | None = None
    crashes: int = 0
    reason: str = ""
    _failed: Placement | None = None
    _in_a_row: int = 0
    _rests_until: float = -math.inf
    _service_seconds: float | None = None

    def need_of(self, placement: Placement) -> int | None:
        return self.need[1] if self.need and self.need[0] == placement else None

    def failed(self, placement: Placement, reason: str, now: float) -> None:
        if placement != self._failed:
            self._failed, self._in_a_row = placement, 0
        self._in_a_row += 1
        self._rests_until = now + rest_seconds(self._in_a_row)
        self.reason = reason

    def rests(self, placement: Placement, now: float) -> float:
        """Seconds until it may be started again; another placement of the same model did nothing wrong."""
        return max(0.0, self._rests_until - now) if placement == self._failed else 0.0

    def resting(self, key: str, rest: float) -> Busy:
        return Busy(f"{key} is not started again for {rest:.1f} s: {self.reason}", retry_after_seconds=rest)

    def worked(self, seconds: float) -> None:
        self._failed, self._in_a_row, self.reason = None, 0, ""
        before = self._service_seconds
        self._service_seconds = seconds if before is None else before + _NEWEST_WEIGHT * (seconds - before)

    def retry_after_seconds(self, waiting: int, slots: int) -> float:
        """When those who wait now will have been served."""
        one = _UNKNOWN_SERVICE_SECONDS if self._service_seconds is None else self._service_seconds
        return min(max(one * waiting / max(slots, 1), _SHORTEST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS)

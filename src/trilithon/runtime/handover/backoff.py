"""When what went wrong may be tried again: after a rest, twice as long each time that it goes wrong once more."""

import time
from collections.abc import Callable

__all__ = ["Backoff"]

FIRST_SECONDS, LONGEST_SECONDS = 10.0, 3600.0


class Backoff:
    """`last` is why it rested last, also when that is over; `count` is how often it did."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.last = ""
        self.count = 0
        self._clock_ns = clock_ns
        self._until_ns: float = 0
        self._next_seconds = FIRST_SECONDS

    @property
    def reason(self) -> str:
        """Why it rests now; empty when it may be tried."""
        return self.last if self._clock_ns() < self._until_ns else ""

    def begin(self, reason: str) -> None:
        """Requests that were on their way together fail together: that counts once."""
        if not self.reason:
            self.last = reason
            self.count += 1
            self._until_ns = self._clock_ns() + self._next_seconds * 1e9
            self._next_seconds = min(2 * self._next_seconds, LONGEST_SECONDS)

    def worked(self) -> None:
        """What came to its end during a rest was begun before it, and tells nothing."""
        if not self.reason:
            self._next_seconds = FIRST_SECONDS

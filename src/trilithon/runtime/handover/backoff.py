"""Pauses after failures: each is twice as long as the one before, until something worked again."""

import time
from collections.abc import Callable

__all__ = ["Backoff"]

FIRST_SECONDS, MAX_SECONDS = 10.0, 3600.0


class Backoff:
    """`last_reason` is the reason of the last pause, also when that is over; `count` is the number of pauses."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.last_reason = ""
        self.count = 0
        self._clock_ns = clock_ns
        self._until_ns = 0.0
        self._next_seconds = FIRST_SECONDS

    @property
    def left_seconds(self) -> float:
        """Until the end of the pause; 0 when there is none."""
        return max(0.0, (self._until_ns - self._clock_ns()) / 1e9)

    @property
    def reason(self) -> str:
        """Why there is a pause now; empty when there is none."""
        return self.last_reason if self.left_seconds else ""

    def begin(self, reason: str) -> None:
        """Requests that ran at the same time fail together: that counts once."""
        if not self.left_seconds:
            self.last_reason = reason
            self.count += 1
            self._until_ns = self._clock_ns() + self._next_seconds * 1e9
            self._next_seconds = min(2 * self._next_seconds, MAX_SECONDS)

    def succeeded(self) -> None:
        """A success during a pause was begun before it, and does not count."""
        if not self.left_seconds:
            self._next_seconds = FIRST_SECONDS

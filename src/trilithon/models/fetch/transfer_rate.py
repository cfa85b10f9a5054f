"""The rate of a transfer: over the last seconds, the time left, and a limit for several connections."""

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from trilithon.errors import UserError

__all__ = ["RateLimit", "ReportProgress", "TransferProgress", "TransferRate", "parse_rate"]

_WINDOW_NS = 10_000_000_000
_LEAST_NS = 500_000_000
_STEP_NS = 100_000_000
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([kmg]?)(?:i?b)?(?:/s)?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LEAST_RATE = 1 << 10


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """The progress of one file. `total_bytes` is None while the size is unknown, the others until there is a rate."""

    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float | None = None
    seconds_left: float | None = None


ReportProgress = Callable[[TransferProgress], None]
"""Called a few times a second, also while no data comes; it may raise to stop."""


class TransferRate:
    """The rate over the last ten seconds. Bytes before the first call do not count."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._samples: deque[tuple[int, int]] = deque()

    def at(self, done_bytes: int, total_bytes: int | None) -> TransferProgress:
        now = self._clock()
        if self._samples and done_bytes < self._samples[-1][1]:  # restarted
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= _STEP_NS:
            self._samples.append((now, done_bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_NS:
            self._samples.popleft()
        start_ns, start_bytes = self._samples[0]
        if now - start_ns < _LEAST_NS:
            return TransferProgress(done_bytes, total_bytes)
        rate = (done_bytes - start_bytes) / ((now - start_ns) / 1e9)
        left = (total_bytes - done_bytes) / rate if total_bytes is not None and rate > 0 else None
        return TransferProgress(done_bytes, total_bytes, rate, left)


class RateLimit:
    """At most so many bytes a second for all callers together, with bursts of a fifth of a second."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._free_at = 0

    def take(self, count: int) -> float:
        """Count received bytes, and return the seconds to wait before the next request."""
        if self._rate is None:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now - _STEP_NS * 2) + int(count / self._rate * 1e9)
        return max((self._free_at - now) / 1e9, 0.0)


def parse_rate(text: str, *, name: str) -> float:
    """Parse a rate such as "500k", "2M" or "1.5MB/s" (binary units) to bytes per second. Raises UserError, which names
    the option `name`."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    if rate < _LEAST_RATE:
        raise UserError(
            "{name} {text}: write a rate from 1k on, such as 500k or 2M (bytes a second)", name=name, text=text[:40]
        )
    return rate

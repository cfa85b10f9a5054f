"""How fast bytes come: the rate of the last seconds, the time that is left, and a limit that several share."""

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
    """Of one file. What is not known is None: the size of a file whose server does not say it, a rate before there
    is one."""

    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float | None = None
    seconds_left: float | None = None


ReportProgress = Callable[[TransferProgress], None]
"""Called some times a second, also while nothing comes; it may raise to give up."""


class TransferRate:
    """The rate over the last ten seconds; it forgets what was there before the first call."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._seen: deque[tuple[int, int]] = deque()

    def at(self, done_bytes: int, total_bytes: int | None) -> TransferProgress:
        now = self._clock()
        if self._seen and done_bytes < self._seen[-1][1]:  # begun anew
            self._seen.clear()
        if not self._seen or now - self._seen[-1][0] >= _STEP_NS:
            self._seen.append((now, done_bytes))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_NS:
            self._seen.popleft()
        since, before = self._seen[0]
        if now - since < _LEAST_NS:
            return TransferProgress(done_bytes, total_bytes)
        rate = (done_bytes - before) / ((now - since) / 1e9)
        left = (total_bytes - done_bytes) / rate if total_bytes is not None and rate > 0 else None
        return TransferProgress(done_bytes, total_bytes, rate, left)


class RateLimit:
    """So many bytes a second at most, whoever takes them; bursts of a fifth of a second."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._free_at = 0

    def take(self, count: int) -> float:
        """Seconds to wait before the next ones are asked for."""
        if self._rate is None:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now - _STEP_NS * 2) + int(count / self._rate * 1e9)
        return max((self._free_at - now) / 1e9, 0.0)


def parse_rate(text: str, *, name: str) -> float:
    """Bytes a second in "500k", "2M", "1.5MB/s" (binary units). Raises UserError, naming the option `name`."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    if rate < _LEAST_RATE:
        raise UserError(f"{name} {text[:40]}: write a rate from 1k on, such as 500k or 2M (bytes a second)")
    return rate

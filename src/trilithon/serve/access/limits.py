"""What one client may take: bytes of a body, time to send it, and requests in a minute."""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.types import Message, Receive

from trilithon.serve.http.errors import ApiError
from trilithon.units import format_bytes

__all__ = ["BodyLimits", "BoundedBody", "Buckets", "caller_at"]

# Addresses are for the asking, memory is not.
_MOST_CALLERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """`silence_seconds` without a byte end the request. So does a body that is slower than `slowest` over all, for one
    that brings a byte now and then would hold its connection for ever."""

    most_bytes: int = 64 << 20
    silence_seconds: float = 30.0
    slowest_bytes_per_second: float = 1024.0


class BoundedBody:
    """In place of a request's `receive`. Beyond the limits it raises ApiError, which `problem` holds from then on,
    whatever the application makes of it."""

    def __init__(self, receive: Receive, limits: BodyLimits, announced: int | None = None):
        self.problem: ApiError | None = None
        self._receive = receive
        self._limits = limits
        self._announced = announced
        self._taken = 0
        self._whole = False
        self._began_ns = time.monotonic_ns()

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        if self.problem is not None:
            raise self.problem
        self._require_size(self._announced or 0)
        message = await self._next()
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            self._require_size(self._taken)
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(self._patience_seconds()):
                return await self._receive()
        except TimeoutError:
            self.problem = ApiError(
                f"the request body stopped after {format_bytes(self._taken)}; send it again, faster",
                status=408,
                kind="timeout_error",
            )
            raise self.problem from None

    def _patience_seconds(self) -> float:
        limits = self._limits
        gone = (time.monotonic_ns() - self._began_ns) / 1e9
        allowed = limits.silence_seconds + self._taken / limits.slowest_bytes_per_second
        return max(min(limits.silence_seconds, allowed - gone), 0.0)

    def _require_size(self, size_bytes: int) -> None:
        if size_bytes > self._limits.most_bytes:
            self.problem = ApiError(
                f"the request body is larger than {format_bytes(self._limits.most_bytes)}; send less at once",
                status=413,
                kind="request_too_large",
            )
            raise self.problem


def caller_at(address: str) -> str:
    """Who a client without a key is: all addresses of one network of IPv6 (/64) are one caller."""
    try:
        ip_address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip_address, ipaddress.IPv4Address) or ip_address.ipv4_mapped is not None:
        return address
    return str(ipaddress.IPv6Network((ip_address, 64), strict=False))


class Buckets:
    """A token bucket for each caller: `per_minute` requests at once, then as many a minute."""

    def __init__(self, per_minute: int, most_callers: int = _MOST_CALLERS):
        self._size = float(per_minute)
        self._most = most_callers
        self._left: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, caller: str, now_ns: int) -> float:
        """0 when the request may pass, otherwise seconds until one may."""
        left, at_ns = self._left.pop(caller, (self._size, now_ns))
        left = min(left + (now_ns - at_ns) / 60e9 * self._size, self._size)
        passes = left >= 1.0
        self._left[caller] = (left - 1.0 if passes else left, now_ns)
        if len(self._left) > self._most:
            self._left.popitem(last=False)  # who was silent longest has the most tokens again
        return 0.0 if passes else (1.0 - left) * 60.0 / self._size

"""One HTTP request over a Unix socket, with the moment at which each piece of the answer arrived.

The parent must not steal time from the child that it measures. An HTTP client library took 570 µs of CPU per
streamed token (3% of a core at 50 tokens per second); here arriving bytes are only stamped and kept, about 60 µs,
and h11 takes them apart when somebody asks.
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import h11

__all__ = ["ChunkedBody", "Exchange"]

_LONGEST_LINE = 1 << 12  # of a chunk's size, or a trailer


class ChunkedBody:
    """A body in chunks taken apart (RFC 9112, section 7.1): h11 takes 50 µs for the one chunk that a token is."""

    def __init__(self) -> None:
        self.complete = False
        self._rest = b""
        self._left = 0
        self._ended = True  # the line's end behind a chunk was seen
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in it. Raises h11.RemoteProtocolError for what is no chunk."""
        self._rest += data
        found = []
        while not self.complete and self._rest:
            if self._left:
                body, self._rest = self._rest[: self._left], self._rest[self._left :]
                self._left -= len(body)
                found.append(body)
            elif not self._line():
                break
        return b"".join(found)

    def _line(self) -> bool:
        """Read one line; False while it is not all there."""
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            if len(self._rest) > _LONGEST_LINE:
                raise h11.RemoteProtocolError("an endless line where a chunk should begin")
            return False
        self._rest = rest
        if self._trailer:
            self.complete = not line
        elif not self._ended:
            if line:
                raise h11.RemoteProtocolError("a chunk longer than it said")
            self._ended = True
        else:
            self._left = _size_of(line)
            self._ended, self._trailer = False, self._left == 0
        return True


def _size_of(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not 0 < len(digits) <= 15 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        raise h11.RemoteProtocolError(f"no size of a chunk: {line[:40]!r}")
    return int(digits, 16)


class Exchange(asyncio.Protocol):
    """Use `Exchange.open`. Raises OSError when the connection fails, TimeoutError when a limit is over, and
    h11.RemoteProtocolError when the answer is no HTTP."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.complete = False
        self._http = h11.Connection(h11.CLIENT)
        self._chunked: ChunkedBody | None = None
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._last_ns = time.monotonic_ns()
        self._waiter: asyncio.Future[None] | None = None
        self._divert: Callable[[], bool] | None = None
        self._broken: h11.RemoteProtocolError | None = None
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, socket: Path, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator["Exchange"]:
        """Send the request; leaving the context closes the connection, which cancels what is still running."""
        loop = asyncio.get_running_loop()
        transport, exchange = await loop.create_unix_connection(cls, str(socket))
        try:
            exchange._send(method, path, b"" if body is None else json.dumps(body).encode())
            yield exchange
        finally:
            transport.close()
            if exchange._alarm is not None:
                exchange._alarm.cancel()

    def _send(self, method: str, path: str, content: bytes) -> None:
        headers = [
            ("Host", "runner"),
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
        ]
        events = (h11.Request(method=method, target=path, headers=headers), h11.Data(content), h11.EndOfMessage())
        assert self._transport is not None
        # At once: a server that answers at the head's end and closes would break the pipe of what came later.
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    async def wait(self, limit_seconds: float) -> None:
        """Until something arrived that `read` has not given yet, or the connection ended."""
        if self._arrived or self._lost.done():
            return
        loop = asyncio.get_running_loop()
        self._waiter, self._deadline = loop.create_future(), loop.time() + limit_seconds
        # One alarm for many waits, put off when it goes: a timeout of its own for each token is dear.
        if self._alarm is not None and self._deadline < self._alarm.when():
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._alarm = loop.call_at(self._deadline, self._late)
        await self._waiter

    @contextlib.contextmanager
    def diverted(self, on_arrival: Callable[[], bool] | None) -> Iterator[None]:
        """Meanwhile, whoever waits sleeps on where `on_arrival`, called when something came, says that it is done
        with it: waking a task up costs more than passing a token on."""
        self._divert = on_arrival
        try:
            yield
        finally:
            self._divert = None

    def _late(self) -> None:
        self._alarm = None
        if self._waiter is None or self._waiter.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._deadline:
            self._waiter.set_exception(TimeoutError())
        else:
            self._alarm = loop.call_at(self._deadline, self._late)

    async def wait_until_over(self, first_seconds: float, hang_seconds: float) -> None:
        """Until the connection ended, without a look at what arrives. TimeoutError (its text: the seconds) when
        nothing of the body came for `first_seconds`, or nothing more for `hang_seconds` once it had begun."""
        while True:
            limit = hang_seconds if self._has_begun() else first_seconds
            left = limit - (time.monotonic_ns() - self._last_ns) / 1e9
            if left <= 0:
                raise TimeoutError(f"{limit:g}")
            # Looked at again after `hang_seconds` at the latest: the body may have begun meanwhile.
            await asyncio.wait([self._lost], timeout=min(left, hang_seconds))
            if self._lost.done():
                return

    def _has_begun(self) -> bool:
        """Whether more than the head has arrived: llama-server sends that before it evaluates the prompt."""
        return bool(b"".join(data for _, data in self._arrived).partition(b"\r\n\r\n")[2])

    def read(self) -> list[tuple[int, bytes]]:
        """The pieces of the body that have arrived since the last call, each with its moment (monotonic ns).

        Sets `status` and `content_type` once the head is there and `complete` at the end of the body. Raises
        ConnectionError when the connection ended before, once all that came is given; what it raises once, it raises
        again.
        """
        if self._broken is not None:
            raise self._broken
        try:
            return self._read()
        except h11.RemoteProtocolError as error:
            self._broken = error
            raise

    def _read(self) -> list[tuple[int, bytes]]:
        pieces: list[tuple[int, bytes]] = []
        while self._arrived:
            at_ns, data = self._arrived.popleft()
            if self._chunked is None:
                self._http.receive_data(data)
                pieces += [(at_ns, body) for body in self._events()]
            elif body := self._chunked.feed(data):
                pieces.append((at_ns, body))
        if self._chunked is not None:
            self.complete = self._chunked.complete
        if self._lost.done() and not self.complete and self._chunked is None:
            self._http.receive_data(b"")
            with contextlib.suppress(h11.RemoteProtocolError):  # it is what an early end is to h11
                pieces += [(time.monotonic_ns(), body) for body in self._events()]
        if self._lost.done() and not self.complete and not pieces:  # what came before goes first
            raise self._lost.result() or ConnectionResetError("the answer broke off before its end")
        return pieces

    def _events(self) -> list[bytes]:
        bodies: list[bytes] = []
        while not self.complete and self._chunked is None:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Response):
                self.status = event.status_code
                self.content_type = dict(event.headers).get(b"content-type", b"").decode("latin-1")
                if dict(event.headers).get(b"transfer-encoding") == b"chunked":
                    self._chunked = ChunkedBody()
                    bodies += filter(None, [self._chunked.feed(self._http.trailing_data[0])])
            elif isinstance(event, h11.Data):
                bodies.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                self.complete = isinstance(event, h11.EndOfMessage)
                break
        return bodies

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._last_ns = time.monotonic_ns()
        self._arrived.append((self._last_ns, data))
        if self._divert is None or not self._divert():
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set_result(exc)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""One HTTP request to a child, with the arrival time of each piece of the answer.

The parent must not take CPU time from the child that it measures. An HTTP client library took 570 µs of CPU time per
streamed token (3% of a core at 50 tokens per second). Here, arriving bytes are only stored with their time, which takes
about 60 µs, and parsed with h11 on demand."""

import asyncio
import contextlib
import functools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, cast

import h11

from trilithon.engines.wire.dialect import Translation
from trilithon.errors import EngineError
from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.engine_errors import engine_error

__all__ = ["ChunkedBody", "Exchange"]

_MAX_LINE_BYTES = 1 << 12  # of a chunk size, or of a trailer
_DIALECT_SECONDS = 60.0  # for what a dialect asks the child about itself: two prompts of some tokens


class ChunkedBody:
    """Parser of a chunked body (RFC 9112, section 7.1). h11 takes 50 µs for the chunk of one token."""

    def __init__(self) -> None:
        self.complete = False
        self._rest = b""
        self._left = 0
        self._ended = True  # the line end after a chunk was read
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`. Raises h11.RemoteProtocolError when it is malformed."""
        self._rest += data
        parts = []
        while not self.complete and self._rest:
            if self._left:
                body, self._rest = self._rest[: self._left], self._rest[self._left :]
                self._left -= len(body)
                parts.append(body)
            elif not self._line():
                break
        return b"".join(parts)

    def _line(self) -> bool:
        """Read one line; False when it is incomplete."""
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            if len(self._rest) > _MAX_LINE_BYTES:
                raise h11.RemoteProtocolError("the line before a chunk is too long")
            return False
        self._rest = rest
        if self._trailer:
            self.complete = not line
        elif not self._ended:
            if line:
                raise h11.RemoteProtocolError("a chunk is longer than its stated size")
            self._ended = True
        else:
            self._left = _size_of(line)
            self._ended, self._trailer = False, self._left == 0
        return True


def _size_of(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not 0 < len(digits) <= 15 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        raise h11.RemoteProtocolError(f"not a chunk size: {line[:40]!r}")
    return int(digits, 16)


class Exchange(asyncio.Protocol):
    """Use `Exchange.open`. Raises OSError when the connection fails, TimeoutError after a limit, and
    h11.RemoteProtocolError when the answer is not HTTP."""

    def __init__(self) -> None:
        self.path = ""
        self.status: int | None = None
        self.content_type = ""
        self._stated_type = ""
        self.complete = False
        self._http = h11.Connection(h11.CLIENT)
        self._chunked: ChunkedBody | None = None
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._last_ns = time.monotonic_ns()
        self._waiting: asyncio.Future[None] | None = None
        self._on_arrival: Callable[[], bool] | None = None
        self._error: h11.RemoteProtocolError | EngineError | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._translation: Translation | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator["Exchange"]:
        """Send the request, in the child's dialect; what `read` gives is llama-server's. Leaving the context closes the
        connection, which cancels the request."""
        translation = None
        if endpoint.dialect is not None:
            turn: contextlib.AbstractAsyncContextManager[None] = endpoint.translating
            if body is None:  # it asks nothing
                turn = contextlib.nullcontext()
            async with turn:
                translation = await endpoint.dialect.translation(path, body, functools.partial(cls._answer, endpoint))
            path, body = translation.path, translation.body
        async with cls._opened(endpoint, method, path, body) as exchange:
            exchange._translation = translation
            yield exchange

    @classmethod
    @contextlib.asynccontextmanager
    async def _opened(
        cls, endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator["Exchange"]:
        transport, exchange = await endpoint.connect(cls)
        exchange.path = path
        try:
            exchange._send(method, endpoint, b"" if body is None else json.dumps(body).encode())
            yield exchange
        finally:
            transport.close()
            if exchange._timer is not None:
                exchange._timer.cancel()

    @classmethod
    async def _answer(cls, endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> bytes:
        """The answer to one request that is not translated."""
        content = b""
        async with cls._opened(endpoint, "POST", path, body) as exchange:
            while not exchange.complete:
                await exchange.wait(_DIALECT_SECONDS)
                content += b"".join(piece for _, piece in exchange.read())
        if exchange.status is None or exchange.status >= 400:
            raise engine_error(exchange.status or 500, content, path)
        return content

    def _send(self, method: str, endpoint: Endpoint, content: bytes) -> None:
        headers = [
            ("Host", endpoint.host),
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            *([("Authorization", f"Bearer {endpoint.key}")] if endpoint.key else []),
        ]
        target = endpoint.prefix + self.path
        events = (h11.Request(method=method, target=target, headers=headers), h11.Data(content), h11.EndOfMessage())
        assert self._transport is not None
        # In one write: a server that answers after the head and closes would break the pipe for the rest.
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    async def wait(self, limit_seconds: float) -> None:
        """Wait until there is something that `read` has not returned yet, or the connection is closed."""
        if self._arrived or self._closed.done():
            return
        loop = asyncio.get_running_loop()
        self._waiting, self._deadline = loop.create_future(), loop.time() + limit_seconds
        # One timer for many waits, which is extended when it fires: a timeout per token takes too much CPU time.
        if self._timer is not None and self._deadline < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(self._deadline, self._on_deadline)
        await self._waiting

    @contextlib.contextmanager
    def handled_by(self, on_arrival: Callable[[], bool] | None) -> Iterator[None]:
        """Call `on_arrival` when something arrived. When it returns True, `wait` goes on waiting: waking a task up
        takes more CPU time than passing a token on."""
        self._on_arrival = on_arrival
        try:
            yield
        finally:
            self._on_arrival = None

    def _on_deadline(self) -> None:
        self._timer = None
        if self._waiting is None or self._waiting.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._deadline:
            self._waiting.set_exception(TimeoutError())
        else:
            self._timer = loop.call_at(self._deadline, self._on_deadline)

    async def wait_until_closed(self, first_seconds: float, hang_seconds: float) -> None:
        """Wait until the connection is closed, without parsing. TimeoutError (its text: the seconds) when nothing of
        the body arrived for `first_seconds`, or nothing for `hang_seconds` once it had begun."""
        while True:
            limit = hang_seconds if self._has_begun() else first_seconds
            left = limit - (time.monotonic_ns() - self._last_ns) / 1e9
            if left <= 0:
                raise TimeoutError(f"{limit:g}")
            # The body may begin meanwhile, so this is checked again after `hang_seconds` at the latest.
            await asyncio.wait([self._closed], timeout=min(left, hang_seconds))
            if self._closed.done():
                return

    def _has_begun(self) -> bool:
        """Whether more than the head has arrived, which llama-server sends before prefill."""
        return bool(b"".join(data for _, data in self._arrived).partition(b"\r\n\r\n")[2])

    def read(self) -> list[tuple[int, bytes]]:
        """The pieces of the body that have arrived since the last call, each with its arrival time (monotonic ns).

        Sets `status` and `content_type` once the head has arrived, and `complete` at the end of the body. Raises
        ConnectionError when the connection was closed before, after everything that arrived was returned, and
        EngineError for an answer that cannot be translated. An error is raised again by later calls."""
        if self._error is not None:
            raise self._error
        was_complete = self.complete
        try:
            pieces = self._read()
            return self._translated(pieces, ends=self.complete and not was_complete)
        except (h11.RemoteProtocolError, EngineError) as error:
            self._error = error
            raise

    def _translated(self, pieces: list[tuple[int, bytes]], *, ends: bool) -> list[tuple[int, bytes]]:
        translation = self._translation
        translator = None if translation is None else translation.translator
        if translation is None or translator is None or self.status is None or self.status >= 400:
            return pieces
        is_stream = self._stated_type.startswith("text/event-stream")
        self.content_type = translation.content_type or self._stated_type
        translated = [(at_ns, translator.feed(piece, is_stream=is_stream)) for at_ns, piece in pieces]
        if ends:
            translated.append((self._last_ns, translator.finish()))
        return [(at_ns, piece) for at_ns, piece in translated if piece]

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
        if self._closed.done() and not self.complete and self._chunked is None:
            self._http.receive_data(b"")
            with contextlib.suppress(h11.RemoteProtocolError):  # h11 raises it for an incomplete answer
                pieces += [(time.monotonic_ns(), body) for body in self._events()]
        if self._closed.done() and not self.complete and not pieces:  # they are returned first
            raise self._closed.result() or ConnectionResetError("the answer is incomplete")
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
                self._stated_type = self.content_type
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
        if self._on_arrival is None or not self._on_arrival():
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(exc)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

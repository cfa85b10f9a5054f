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
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import h11

__all__ = ["Exchange"]


class Exchange(asyncio.Protocol):
    """Use `Exchange.open`. Raises OSError when the connection fails, TimeoutError when a limit is over, and
    h11.RemoteProtocolError when the answer is no HTTP."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.complete = False
        self._http = h11.Connection(h11.CLIENT)
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._last_ns = time.monotonic_ns()
        self._waiter: asyncio.Future[None] | None = None
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
        self._waiter = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(limit_seconds):
            await self._waiter

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
        ConnectionError when the connection ended before.
        """
        pieces: list[tuple[int, bytes]] = []
        while self._arrived:
            at_ns, data = self._arrived.popleft()
            self._http.receive_data(data)
            pieces += [(at_ns, body) for body in self._events()]
        if self._lost.done() and not self.complete:
            self._http.receive_data(b"")
            with contextlib.suppress(h11.RemoteProtocolError):  # it is what an early end is to h11
                pieces += [(time.monotonic_ns(), body) for body in self._events()]
            if not self.complete:
                raise self._lost.result() or ConnectionResetError("the answer broke off before its end")
        return pieces

    def _events(self) -> list[bytes]:
        bodies = []
        while not self.complete:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Response):
                self.status = event.status_code
                self.content_type = dict(event.headers).get(b"content-type", b"").decode("latin-1")
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
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set_result(exc)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

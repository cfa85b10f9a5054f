"""HTTP/1.1 by uvicorn, with an end to patience: a client that never finishes its headers, or never reads its answer,
would otherwise keep its connection for ever."""

import asyncio
import socket
from typing import Any, cast

import h11
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["OUTLET", "PatientProtocol"]

OUTLET = "trilithon.outlet"
"""In a request's scope, the `Outlet` of its connection: the body of an answer whose length was not announced may go
there, between the first and the last that `send` is given."""


class PatientProtocol(H11Protocol):
    """For `uvicorn.Config(http=PatientProtocol)`.

    uvicorn's own limit starts after an answer and falls with the first byte of the next request (uvicorn 0.54,
    protocols/http/h11_impl.py), so half a header would be waited for without end; and it waits for readers without
    limit."""

    header_seconds = 15.0
    stalled_seconds = 60.0
    least_read_bytes = 16 << 10  # of a stalled answer, in each `stalled_seconds`

    def __init__(self, *words: Any, **more: Any):
        super().__init__(*words, **more)
        self.app = self._telling(self.app)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        # So that what a reader leaves waiting is known of. 0 would be reached by an empty buffer under TLS (asyncio's
        # sslproto compares with >=), and an answer's body would wait for ever.
        transport.set_write_buffer_limits(high=1)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._upgraded or self._at_work():
            self._headers_came()
        elif self._header_timer is None:
            self._await_headers()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From now on the connection is another protocol's, which has its own ends to patience (it pings)."""
        super().handle_websocket_upgrade(event)
        self._upgraded = True
        self._reads_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        self._reads_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_bytes = self.transport.get_write_buffer_size()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.stalled_seconds, self._check_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reads_on()

    def _telling(self, app: ASGI3Application) -> ASGI3Application:
        """The application, given a way past `send` by its scope where there is one."""

        async def told(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["http_version"] == "1.1" and scope["method"] != "HEAD":
                scope[OUTLET] = _Chunks(self.cycle, self.transport)
            await app(scope, receive, send)

        return told

    def _at_work(self) -> bool:
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None until the first request
        return cycle is not None and not cycle.response_complete

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.header_seconds, self._headers_late)

    def _headers_came(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self._at_work() and not self.transport.is_closing():
            self.transport.abort()

    def _reads_on(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _check_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        if self._unread_bytes - left < self.least_read_bytes:
            self._stall_timer = None
            self.transport.abort()
            return
        self._unread_bytes = left
        self._stall_timer = self.loop.call_later(self.stalled_seconds, self._check_reader)


class _Chunks:
    """Each write is one chunk (RFC 9112, section 7.1). By way of `send`, uvicorn and h11, it takes five times as long;
    they keep no account of a chunked body (h11 0.16, _writers.py), so that nothing is kept from them."""

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport):
        self._cycle = cycle
        self._transport = transport

    def free(self) -> bool:
        cycle = self._cycle
        return cycle.response_started and not (
            cycle.response_complete or cycle.disconnected or cycle.flow.write_paused or self._transport.is_closing()
        )

    def write(self, content: bytes) -> None:
        if content:  # an empty chunk would be the end
            self._transport.write(b"%x\r\n%b\r\n" % (len(content), content))


def _send_at_once(transport: asyncio.Transport) -> None:
    """asyncio does that only for sockets that were made with the protocol's number (`_set_nodelay` in base_events.py of
    Python 3.11), which those of `socket.create_server` are not: each small answer would wait 40 ms for Nagle."""
    extra_info = transport.get_extra_info("socket")
    if extra_info is not None and extra_info.family in (socket.AF_INET, socket.AF_INET6):
        extra_info.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

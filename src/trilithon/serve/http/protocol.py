"""HTTP/1.1 by uvicorn, with an end to patience: a client that never finishes its headers, or never reads its answer,
would otherwise keep its connection for ever."""

import asyncio
import fcntl
import json
import socket
import sys
import termios
from typing import Any, cast

import h11
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from trilithon.serve.http.connections import most_connections, note_full
from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.half_closed import CHECK_AFTER_SECONDS, CHECK_EVERY_SECONDS, reads_on, watch

__all__ = ["OUTLET", "PatientProtocol"]

# A body in chunks of one byte takes microseconds for each: others have their turn after so many bytes.
_SLICE_BYTES, _PLAIN_SLICE_BYTES = 8 << 10, 256 << 10
# How long to go on reading what is thrown away: closing at once would reset the connection, and the client would see
# that in place of the answer.
_LINGER_SECONDS = 2.0

OUTLET = "trilithon.outlet"
"""In a request's scope, the `Outlet` of its connection: the body of an answer whose length was not announced may go
there, between the first and the last that `send` is given."""


class PatientProtocol(H11Protocol):
    """For `uvicorn.Config(http=PatientProtocol)`.

    uvicorn's own limit starts after an answer and falls with the first byte of the next request (uvicorn 0.54,
    protocols/http/h11_impl.py), so half a header would be waited for without end; and it waits for readers without
    limit. A client that shuts down its sending direction gets its answer."""

    header_seconds = 15.0
    stalled_seconds = 60.0
    least_read_bytes = 16 << 10  # of a stalled answer, in each `stalled_seconds`

    def __init__(self, *words: Any, **more: Any):
        super().__init__(*words, **more)
        self.app = self._telling(self.app)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._upgraded = self._refused = self._half_closed = False
        self._unread = bytearray()
        self._received_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        # So that what a reader leaves waiting is known of. 0 would be reached by an empty buffer under TLS (asyncio's
        # sslproto compares with >=), and an answer's body would wait for ever.
        transport.set_write_buffer_limits(high=1)
        self._await_headers()
        self._received_at = self.loop.time()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._received_at = self.loop.time()
        if self._refused:
            return
        if self._unread or len(data) > self._slice_bytes():
            self._unread += data
            if len(self._unread) == len(data):  # else the next slice is on its way
                self.transport.pause_reading()
                self._read_slice()
        else:
            self._read(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        while self._unread and not self._refused:
            self._read_slice_now()
        if self._refused or not self._at_work() or self.cycle.more_body or self.scheme == "https":
            return None
        self._half_closed = True
        watch(self.transport.get_extra_info("socket"))
        after_request = self.loop.time() - self._received_at
        self.loop.call_later(CHECK_AFTER_SECONDS, self._check_half_closed, after_request)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and not self._at_work():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called where h11 refuses what was received; its hint tells a head that is too long."""
        refusal = sys.exc_info()[1]
        if not isinstance(refusal, h11.RemoteProtocolError) or refusal.error_status_hint != 431:
            super().send_400_response(msg)
            return
        in_line = b"\n" not in self.conn.trailing_data[0]
        reason = "URI Too Long" if in_line else "Request Header Fields Too Large"
        what = "path is" if in_line else "headers are"
        self._refuse(ApiError(f"the {what} too long; send less", status=414 if in_line else 431), reason)

    def _make_room(self) -> None:
        """A new connection takes the place of the one that has been idle longest. Where all are at work, or have sent
        what is not read yet, it is told to come again."""
        most = most_connections()
        if len(self.connections) <= most:
            return
        kept = [other for other in self.connections if not other.transport.is_closing()]
        if len(kept) <= most:
            return
        note_full(most)
        idle = [other for other in kept if isinstance(other, PatientProtocol) and other.is_idle and other is not self]
        idle.sort(key=lambda other: other._received_at)
        longest = next((other for other in idle if not _has_unread(other.transport)), None)
        if longest is not None:
            longest.transport.abort()
        else:
            self._refuse(ApiError("too many connections; try again later", status=503), "Service Unavailable")

    @property
    def is_idle(self) -> bool:
        return not (self._at_work() or self._upgraded or self._refused)

    def _refuse(self, problem: ApiError, reason: str) -> None:
        """Answer before there is a whole request, and close."""
        content = json.dumps(error_body("/v1/", problem)).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Connection", "close")]
        for event in (
            h11.Response(status_code=problem.status, headers=headers, reason=reason),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self._unread.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _read_slice(self) -> None:
        """And the next one when others have had their turn."""
        if self.transport.is_closing() or self._upgraded or self._refused:
            return
        if self._unread:
            self._read_slice_now()
        if self._unread:
            self.loop.call_soon(self._read_slice)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _read_slice_now(self) -> None:
        length = self._slice_bytes()
        data = bytes(self._unread[:length])
        del self._unread[:length]
        self._read(data)

    def _slice_bytes(self) -> int:
        """Only a body whose length was announced has no chunks; where both are said, h11 reads chunks."""
        names = {name for name, _ in self.headers} if self._at_work() else set()
        is_plain = b"content-length" in names and b"transfer-encoding" not in names
        return _PLAIN_SLICE_BYTES if is_plain else _SLICE_BYTES

    def _read(self, data: bytes) -> None:
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

    def _check_half_closed(self, after_request: float) -> None:
        if self.transport.is_closing():
            return
        if reads_on(self.transport.get_extra_info("socket"), after_request):
            self.loop.call_later(CHECK_EVERY_SECONDS, self._check_half_closed, after_request)
        else:
            self.transport.abort()

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


def _has_unread(transport: asyncio.Transport) -> bool:
    """Whether bytes wait in the kernel: a connection that was just accepted is read in the loop's next round."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return False
    return any(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)))


def _send_at_once(transport: asyncio.Transport) -> None:
    """asyncio does that only for sockets that were made with the protocol's number (`_set_nodelay` in base_events.py of
    Python 3.11), which those of `socket.create_server` are not: each small answer would wait 40 ms for Nagle."""
    extra_info = transport.get_extra_info("socket")
    if extra_info is not None and extra_info.family in (socket.AF_INET, socket.AF_INET6):
        extra_info.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

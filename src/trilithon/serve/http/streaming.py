"""An HTTP answer that is made while it is sent: the client's leaving ends the work behind it at once, and an error
is an ordinary one as long as nothing was sent. A stream that has to wait is opened all the same, and kept alive."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from trilithon.engines.base import Placement
from trilithon.engines.wire.http import until_closed
from trilithon.errors import TrilithonError
from trilithon.runtime.relay import DirectWriter
from trilithon.serve.http.errors import api_error_of
from trilithon.serve.http.keep_alive import StreamForm, StreamTimes
from trilithon.serve.http.protocol import OUTLET
from trilithon.serve.request_record import current_record, note_broken, note_told

__all__ = ["JSON", "Opening", "Outgoing", "Reply", "placement_header"]

JSON = "application/json"
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# More than any answer to a chat, and little beside a model.
_MOST_AHEAD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What is sent: all of it, or a stream, which may be one that makes use of an outlet."""

    body: bytes | AsyncIterator[bytes] | Callable[[DirectWriter], AsyncIterator[bytes]]
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Opening = Callable[[], AbstractAsyncContextManager[Outgoing]]


class Reply(Response):
    """`opening` is entered when the answer is due and left when the engine is done with it, however it ends: a client
    that reads slowly keeps no engine from others. `stream` is given where the client asked for a stream, and `headers`
    are those of a stream that is opened before its answer."""

    def __init__(
        self, opening: Opening, stream: StreamForm | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._opening = opening
        self._stream = stream
        self._headers_ahead = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = getattr(scope.get("app"), "state", None)
        times = getattr(state, "stream_times", None) or StreamTimes()
        await until_closed(receive, self._write(send, scope.get(OUTLET), times))

    async def _write(self, send: Send, outlet: DirectWriter | None, times: StreamTimes) -> None:
        ahead = SendBuffer(send, outlet)
        making = asyncio.create_task(self._make(ahead))
        try:
            with self._kept_alive(ahead, times):
                await ahead.send()
            await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _make(self, ahead: "SendBuffer") -> None:
        try:
            try:
                async with self._opening() as outgoing:
                    await self._fill(ahead, outgoing)
            except TrilithonError as error:
                if self._stream is None or not ahead.begun:
                    raise
                problem = api_error_of(error)
                note_told(problem.status)
                if problem.status >= 500:
                    note_broken(error)
                await ahead.put(self._stream.broken(problem))
            ahead.finish()
        finally:
            ahead.close()

    async def _fill(self, ahead: "SendBuffer", outgoing: Outgoing) -> None:
        if isinstance(outgoing.body, bytes):
            ahead.begin(outgoing, {"Content-Length": str(len(outgoing.body))})
            await ahead.put(outgoing.body)
        else:
            ahead.begin(outgoing, _STREAM_HEADERS)
            async for chunk in outgoing.body(ahead) if callable(outgoing.body) else outgoing.body:
                await ahead.put(chunk)

    @contextlib.contextmanager
    def _kept_alive(self, ahead: "SendBuffer", times: StreamTimes) -> Iterator[None]:
        """A timer and no task: for each stream there is one."""
        stream, loop = self._stream, asyncio.get_running_loop()
        if stream is None:
            yield
            return
        timers: list[asyncio.TimerHandle] = []

        def tick() -> None:
            wait = times.open_after_seconds
            # Until the placement is known, the model may be none of this server's, which has a status of its own.
            if ahead.begun or _placement() or ahead.silent_seconds >= times.silent_seconds:
                if not ahead.begun:
                    ahead.begin(self._early(stream), _STREAM_HEADERS)
                    ahead.keep_alive(stream)
                elif ahead.silent_seconds >= times.silent_seconds:
                    ahead.keep_alive(stream)
                wait = times.silent_seconds - ahead.silent_seconds
            timers[:] = [loop.call_later(wait, tick)]

        timers.append(loop.call_later(times.open_after_seconds, tick))
        try:
            yield
        finally:
            timers.pop().cancel()

    def _early(self, stream: StreamForm) -> Outgoing:
        placement = _placement()
        placed = placement_header(placement) if placement else {}
        return Outgoing(body=b"", content_type=stream.content_type, headers={**placed, **self._headers_ahead})


class SendBuffer:
    """What is made and not yet sent; whoever makes it waits when it is much.

    Where nothing waits, neither here nor at the reader, a stream's chunk goes to the connection's outlet at once: to
    wake a task up for each costs a tenth of a millisecond, which a model on all cores of a small machine feels."""

    def __init__(self, send: Send, outlet: DirectWriter | None) -> None:
        self._send = send
        self._outlet = outlet
        self._sending = True
        self._head: Message | None = None
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._finished = self._closed = False
        self._last_seconds = time.monotonic()
        self._tail = b""
        self.begun = False
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self._last_seconds

    def begin(self, outgoing: Outgoing, more: Mapping[str, str]) -> None:
        """The head of the answer; only the first one counts."""
        if self.begun or self._closed:
            return
        self.begun = True
        headers = {"Content-Type": outgoing.content_type, **more, **outgoing.headers}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._head = {"type": "http.response.start", "status": 200, "headers": raw}
        if "Content-Length" in headers:
            self._outlet = None
        self._more.set()

    def free(self) -> bool:
        return not (self._sending or self._head or self._chunks) and self._outlet is not None and self._outlet.free()

    def write(self, content: bytes) -> None:
        assert self._outlet is not None
        self._last_seconds = time.monotonic()
        self._tail = content
        self._outlet.write(content)

    async def put(self, chunk: bytes) -> None:
        if not self.free():
            await self._room.wait()
            self._append(chunk)
            self._last_seconds = time.monotonic()
            self._tail = chunk
        elif chunk:
            self.write(chunk)

    def keep_alive(self, stream: StreamForm) -> None:
        """Not within an event or a line, and not where the reader has something left to read."""
        self._last_seconds = time.monotonic()
        if self._closed or self._finished or self._chunks:
            return
        if self._tail and not self._tail.endswith(stream.boundary):
            return
        if self.free():
            assert self._outlet is not None
            self._outlet.write(stream.keep_alive)
        else:
            self._append(stream.keep_alive)

    def _append(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes >= _MOST_AHEAD_BYTES:
            self._room.clear()
        self._more.set()

    def finish(self) -> None:
        self._finished = True

    def close(self) -> None:
        """Nothing comes any more; where it was not finished, the connection has to break off too."""
        self._closed = True
        self._more.set()

    async def send(self) -> None:
        """Until it is closed; whole, where it was finished."""
        while True:
            self._sending = False
            await self._more.wait()
            self._sending = True
            self._more.clear()
            head, self._head = self._head, None
            if head is not None:
                await self._send(head)
            while self._chunks:
                content = b"".join(self._chunks)
                self._chunks.clear()
                self._size_bytes = 0
                self._room.set()
                await self._send({"type": "http.response.body", "body": content, "more_body": True})
            if self._closed:
                break
        if self._finished:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _placement() -> Placement | None:
    record = current_record()
    return record.placement if record else None


def placement_header(placement: Placement) -> dict[str, str]:
    """Its name may hold whatever an option may hold."""
    name = placement.name.encode("ascii", "replace").decode()
    return {"X-Trilithon-Placement": "".join(letter if letter.isprintable() else "?" for letter in name)[:512]}

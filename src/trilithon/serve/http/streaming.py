"""An HTTP answer that is made while it is sent: the client's leaving ends the work behind it at once, and an error
is an ordinary one as long as nothing was sent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from trilithon.engines.base import Placement
from trilithon.engines.wire.http import until_closed
from trilithon.errors import TrilithonError
from trilithon.runtime.relay import DirectWriter
from trilithon.serve.http.errors import ApiError, api_error_of
from trilithon.serve.http.protocol import OUTLET
from trilithon.serve.request_record import note_broken

__all__ = ["EVENTS", "JSON", "Opening", "Outgoing", "Reply", "placement_header"]

EVENTS, JSON = "text/event-stream", "application/json"

# More than any answer to a chat, and little beside a model.
_MOST_AHEAD_BYTES = 4 << 20

Broken = Callable[[ApiError], bytes]
"""The words of a dialect for what goes wrong in the middle of a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What is sent: all of it, or a stream, which may be one that makes use of an outlet."""

    body: bytes | AsyncIterator[bytes] | Callable[[DirectWriter], AsyncIterator[bytes]]
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Opening = Callable[[], AbstractAsyncContextManager[Outgoing]]


class Reply(Response):
    """`opening` is entered when the answer is due and left when the engine is done with it, however it ends: a client
    that reads slowly keeps no engine from others."""

    def __init__(self, opening: Opening, broken: Broken | None = None) -> None:
        super().__init__()
        self._opening = opening
        self._broken = broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_closed(receive, self._write(send, scope.get(OUTLET)))

    async def _write(self, send: Send, outlet: DirectWriter | None) -> None:
        ahead = SendBuffer(send, outlet)
        making = asyncio.create_task(self._make(ahead))
        try:
            await ahead.send()
            await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _make(self, ahead: "SendBuffer") -> None:
        try:
            async with self._opening() as outgoing:
                if isinstance(outgoing.body, bytes):
                    ahead.begin(outgoing, {"Content-Length": str(len(outgoing.body))})
                    await ahead.put(outgoing.body)
                else:
                    ahead.begin(outgoing, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
                    chunks = outgoing.body(ahead) if callable(outgoing.body) else outgoing.body
                    await self._stream(chunks, ahead)
            ahead.finish()
        finally:
            ahead.close()

    async def _stream(self, chunks: AsyncIterator[bytes], ahead: "SendBuffer") -> None:
        try:
            async for chunk in chunks:
                await ahead.put(chunk)
        except TrilithonError as error:
            if self._broken is None:
                raise
            note_broken(error)
            await ahead.put(self._broken(api_error_of(error)))


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
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()

    def begin(self, outgoing: Outgoing, more: Mapping[str, str]) -> None:
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
        self._outlet.write(content)

    async def put(self, chunk: bytes) -> None:
        if self.free():
            self.write(chunk)
            return
        await self._room.wait()
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


def placement_header(placement: Placement) -> dict[str, str]:
    """Its name may hold whatever an option may hold."""
    name = placement.name.encode("ascii", "replace").decode()
    return {"X-Trilithon-Placement": "".join(letter if letter.isprintable() else "?" for letter in name)[:512]}

"""Between HAProxy's two halves: a stream whose board dies ends with an error event, or begins again on another board
where no token was sent.

HAProxy passes answers on as they come and cannot do either. Each connection carries one request. Where this process
does not answer, HAProxy leaves it out, and streams break off without the event."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from trilithon.fleet.error_events import Problem, error_answer, error_event, is_stream
from trilithon.fleet.http_parts import Broken, Head, chunk, content, read_head

__all__ = ["BOARD_HEADER", "RelayTimes", "relay_at"]

BOARD_HEADER = "x-trilithon-board"
"""Which board answers; HAProxy adds it, and its own errors have none."""

_MOST_KEPT_BYTES = 4 << 20
_MOST_WHOLE_BYTES = 16 << 20
_LIMIT_BYTES = 1 << 17
_BROKEN_OFF = (502, 504)
_MOST_TRIES = 3  # the first one, and two on other boards
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTimes:
    """`silence_seconds` without a byte end a stream: a board sends a comment every 5 s (serve.http.keep_alive)."""

    silence_seconds: float = 30.0


@dataclass(slots=True)
class _Request:
    """`body` is what came with the head; `whole` that nothing follows, so that it can be sent again."""

    head: Head
    body: bytes
    whole: bool
    tries: int = 0

    @property
    def is_repeatable(self) -> bool:
        return self.whole and self.tries < _MOST_TRIES


@contextlib.asynccontextmanager
async def relay_at(socket: Path, inner: Path, times: RelayTimes | None = None) -> AsyncIterator[None]:
    """Listen on a Unix socket, and pass requests on to the one of HAProxy's half that knows the boards."""
    relay = _Relay(inner, times or RelayTimes())
    server = await asyncio.start_unix_server(relay.serve, str(socket), limit=_LIMIT_BYTES, backlog=2048)
    try:
        yield
    finally:
        server.close()
        relay.end()


class _Relay:
    def __init__(self, inner: Path, times: RelayTimes):
        self._inner = str(inner)
        self._times = times
        self._tasks: set[asyncio.Task[None]] = set()

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(Broken, ConnectionError):  # the client left
                await self._pass(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read_request(reader)
        answering = asyncio.create_task(self._answer(request, reader, writer))
        if request.whole:
            leaving = asyncio.create_task(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            answering.cancel()  # nothing where it is done
        try:
            await answering
        except asyncio.CancelledError:
            if not answering.cancelled():
                raise

    async def _answer(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until a board has answered it, or the tries are used up."""
        while True:
            request.tries += 1
            async with self._sent(request, reader) as answer:
                try:
                    head = await read_head(answer)
                except Broken:
                    if request.is_repeatable:
                        continue
                    writer.write(error_answer(request.head.path, _LOST))
                    await writer.drain()
                    return
                if is_stream(head.get("content-type")) and head.status == 200:
                    writer.write(head.encoded(framing="transfer-encoding: chunked"))
                    stream = _RelayedStream(request, writer, self._times, head.get(BOARD_HEADER))
                    begun = await stream.copy(answer, head)
                    break
                if not head.get(BOARD_HEADER) and head.status in _BROKEN_OFF and request.is_repeatable:
                    continue
                if await self._pass_whole(request, answer, head, writer):
                    return
        while not begun:  # the stream is open, and the board that opened it is gone
            request.tries += 1
            async with self._sent(request, reader) as answer:
                begun = await stream.go_on(answer)
        await stream.end()  # last: the board is free for the client's next request by now

    async def _pass_whole(
        self, request: _Request, answer: asyncio.StreamReader, head: Head, writer: asyncio.StreamWriter
    ) -> bool:
        """An answer that is no stream; False where it broke off and is to be asked for again."""
        if not head.get(BOARD_HEADER):  # HAProxy's own
            writer.write(error_answer(request.head.path, _problem_of(head.status)))
            await writer.drain()
            return True
        pieces, size = [], 0
        pieces_come = content(answer, head)
        try:
            async for piece in pieces_come:
                pieces.append(piece)
                size += len(piece)
                if size > _MOST_WHOLE_BYTES:
                    break
        except Broken:
            if request.is_repeatable:
                return False
            lost = Problem(message=f"board {head.get(BOARD_HEADER)} did not finish its answer; send the request again")
            writer.write(error_answer(request.head.path, lost))
            await writer.drain()
            return True
        is_more = size > _MOST_WHOLE_BYTES
        writer.write(head.encoded(framing="transfer-encoding: chunked" if is_more else f"content-length: {size}"))
        if request.head.first.startswith("HEAD "):
            return True
        body = b"".join(pieces)
        writer.write(chunk(body) if is_more else body)
        await writer.drain()
        if is_more:
            async for piece in pieces_come:
                writer.write(chunk(piece))
                await writer.drain()
            writer.write(chunk(b""))
        return True

    @contextlib.asynccontextmanager
    async def _sent(self, request: _Request, reader: asyncio.StreamReader) -> AsyncIterator[asyncio.StreamReader]:
        """Where the answer is read from."""
        try:
            answer, upstream = await asyncio.open_unix_connection(self._inner, limit=_LIMIT_BYTES)
        except OSError as error:
            raise Broken(str(error)) from error
        copying = None
        try:
            upstream.write(request.head.encoded() + request.body)
            if not request.whole:
                copying = asyncio.create_task(_copy(reader, upstream))
            with contextlib.suppress(ConnectionError):  # there may be an answer all the same
                await upstream.drain()
            yield answer
        finally:
            if copying is not None:
                copying.cancel()
            upstream.close()


class _RelayedStream:
    """One open stream to a client. Only whole events are passed on, so that an error event can follow."""

    def __init__(self, request: _Request, writer: asyncio.StreamWriter, times: RelayTimes, board: str):
        self._request = request
        self._writer = writer
        self._times = times
        self._board = board
        self._boundary = b"\n" if request.head.path.startswith("/api/") else b"\n\n"
        self._begun = False

    async def copy(self, answer: asyncio.StreamReader, head: Head) -> bool:
        """Pass the events on. False where the board was lost before its first one, and another one may be asked."""
        pending = b""
        pieces = content(answer, head)
        try:
            while True:
                async with asyncio.timeout(self._times.silence_seconds):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                pending += piece
                end = pending.rfind(self._boundary) + len(self._boundary)
                if end < len(self._boundary):
                    end = 0 if pending.strip() else len(pending)
                if end:
                    await self._send(pending[:end])
                    pending = pending[end:]
        except (Broken, TimeoutError) as error:
            return await self._lost(error)
        await self._send(pending)
        return True

    async def end(self) -> None:
        self._writer.write(chunk(b""))
        await self._writer.drain()

    async def go_on(self, answer: asyncio.StreamReader) -> bool:
        """With the answer of another board."""
        try:
            head = await read_head(answer)
        except Broken as error:
            return await self._lost(error)
        self._board = head.get(BOARD_HEADER)
        if head.status == 200 and is_stream(head.get("content-type")):
            return await self.copy(answer, head)
        if not self._board and head.status in _BROKEN_OFF and self._request.is_repeatable:
            return False
        await self._tell(await _board_problem(answer, head) if self._board else _problem_of(head.status))
        return True

    async def _send(self, events: bytes) -> None:
        if events:
            self._begun = self._begun or not _is_keep_alive(events)
            self._writer.write(chunk(events))
            await self._writer.drain()

    async def _lost(self, error: Exception) -> bool:
        why = "was silent for too long" if isinstance(error, TimeoutError) else "was lost"
        is_over = self._begun or not self._request.is_repeatable
        kept = "ended with an error event" if is_over else "is asked again elsewhere"
        _log.warning("board %s %s; a stream %s", self._board or "?", why, kept)
        if is_over:
            words = f"board {self._board or 'of this request'} {why} in the middle of this answer"
            await self._tell(Problem(message=f"{words}; send the request again"))
        return is_over

    async def _tell(self, problem: Problem) -> None:
        self._writer.write(chunk(error_event(self._request.head.path, problem)))
        await self._writer.drain()


_LOST = Problem(message="no board finished this request; send it again", retry_after_seconds=1)


def _problem_of(status: int) -> Problem:
    """HAProxy's: 503 that no board can take it, 502 and 504 that one broke off."""
    if status in _BROKEN_OFF:
        return _LOST
    message = "no board can take this request now: all are down, drained or busy; see: trilithon fleet list"
    return Problem(message=message, status=503, kind="overloaded_error", retry_after_seconds=5)


async def _board_problem(answer: asyncio.StreamReader, head: Head) -> Problem:
    """What a board says in place of a stream, in any API's words."""
    text, error = b"", None
    with contextlib.suppress(Broken, ValueError, KeyError, TypeError):
        async for piece in content(answer, head):
            text += piece
            if len(text) > _LIMIT_BYTES:
                break
        error = json.loads(text)["error"]
    fields = error if isinstance(error, dict) else {"message": error}
    return Problem(
        message=str(fields.get("message") or f"board {head.get(BOARD_HEADER)} answered with status {head.status}"),
        status=head.status,
        kind=str(fields.get("type") or "server_error"),
        code=str(fields.get("code") or ""),
    )


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    """Raises Broken."""
    head = await read_head(reader)
    length = 0 if head.length is None else head.length
    if head.is_chunked or length > _MOST_KEPT_BYTES:
        return _Request(head, b"", whole=False)
    try:
        return _Request(head, await reader.readexactly(length), whole=True)
    except asyncio.IncompleteReadError as error:
        raise Broken("the request is not whole") from error


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The rest of a request, as it comes. When its client leaves, the board is told."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


def _is_keep_alive(events: bytes) -> bool:
    """Comments, white space, and Anthropic's pings."""
    for event in events.split(b"\n\n"):
        lines = [line for line in event.splitlines() if line.strip() and not line.startswith(b":")]
        if lines and lines[0].strip() != b"event: ping":
            return False
    return True

"""An engine's answer as bytes, for clients that speak the engine's own format.

Only the arrival time of each piece is recorded. The engine's timings are read from the end of the answer, once it is
complete."""

import contextlib
import functools
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import h11

from trilithon.engines.wire.messages import NO_PINGS, Finished, HandoverResult, Timings
from trilithon.errors import EngineError
from trilithon.runtime.client import Client
from trilithon.runtime.engine_errors import engine_error, translated
from trilithon.runtime.exchange import Exchange
from trilithon.runtime.taint import EVENTS, AnswerGuard, ErrorWatch

__all__ = ["DirectWriter", "Relayed", "timings_in"]

ErrorCause = Callable[[Awaitable[None]], Awaitable[None]]
"""Awaits something, and raises the cause of its error: the death of the child for a broken connection."""

# The timings are at the end of an answer. The prompt or the usage may precede them, and probabilities follow.
_TAIL_BYTES = 1 << 16
_TIMINGS = b'"timings":'
# For the time limit of the prompt: tokens of an image or a sound, and of the longest prompt.
_MEDIA_TOKENS = 4096
_MAX_PROMPT_TOKENS = 1 << 17
_MEDIA_FIELDS = frozenset({"image_data", "image_url", "input_audio", "multimodal_data"})


class DirectWriter(Protocol):
    """Accepts bytes at once, without waking up a task."""

    def free(self) -> bool:
        """Whether `write` may be called now."""

    def write(self, content: bytes) -> None: ...


class Relayed:
    """An answer that is being received; use `Runner.relay`. Read it once, by `chunks` or by `read`, which raise
    RunError.

    `handover` is what a handover did for it. `first_ns` and `last_ns` are the arrivals of the first and the last bytes
    of the body (monotonic; 0 before). `timings`, of the request as a whole, are set when it is `complete`."""

    def __init__(self, client: Client, exchange: Exchange, cause: ErrorCause, watch: ErrorWatch, first_seconds: float):
        self.handover: HandoverResult | None = None
        self.timings: Timings | None = None
        self.first_ns = self.last_ns = 0
        self.complete = False
        self.complete_timings: Callable[[Finished], Finished] = _unchanged
        self._client = client
        self._exchange = exchange
        self._cause = cause
        self._guard = AnswerGuard(watch)
        self._limit = first_seconds
        self._content = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        client: Client,
        path: str,
        body: Mapping[str, Any],
        cause: ErrorCause,
        watch: ErrorWatch,
        *,
        max_tokens: int | None = None,
    ) -> AsyncIterator["Relayed"]:
        """Send the request and wait for the head of the answer. Leaving closes the connection, which cancels the
        request. The time limit follows from the length of the prompt, and from `max_tokens` at most. What `watch` sees
        becomes an error of the answer. Raises EngineError when the engine answers with an error."""
        if body.get("stream"):
            body = {**body, "sse_ping_interval": NO_PINGS}
        tokens = min(_max_tokens_of(body), max_tokens or _MAX_PROMPT_TOKENS)
        limit = client.hang_seconds + client.patience_seconds(tokens)
        exchange = client.exchange(path, body)
        async with contextlib.AsyncExitStack() as opened:
            relayed: list[Relayed] = []

            async def connect() -> None:
                with translated(limit):
                    relayed.append(cls(client, await opened.enter_async_context(exchange), cause, watch, limit))

            await cause(connect())
            await relayed[0]._read_head()
            yield relayed[0]

    @property
    def status(self) -> int:
        return self._exchange.status or 0

    @property
    def content_type(self) -> str:
        return self._exchange.content_type

    async def begun(self, writer: DirectWriter | None = None) -> None:
        """Wait until `chunks` has something to give, or the body is over."""
        while not (self._content or self._exchange.complete):
            await self._cause(self._wait(writer))

    async def chunks(self, writer: DirectWriter | None = None) -> AsyncGenerator[bytes, None]:
        """The body's bytes; what arrived together comes together. What arrives while this waits goes to `writer` as
        long as that is free, and is not given here. Where the answer fails in the middle, its last event is held back
        and the error raised."""
        while not self.complete:
            content, self._content = self._content, b""
            if content:
                yield content
            elif self._exchange.complete:
                self._end()
            else:
                await self._cause(self._wait(writer))

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def _read_head(self) -> None:
        while not self.status:
            await self._cause(self._wait())
        if self.status >= 400:
            raise engine_error(self.status, await self.read(), self._exchange.path)

    async def _wait(self, writer: DirectWriter | None = None) -> None:
        """Wait until there is more of the answer. Raises Disconnected, EngineTimeout."""
        with translated(self._limit):
            await self._client.watch(functools.partial(self._has_more, writer), self._limit)
            self._content += self._take()

    def _take(self) -> bytes:
        pieces = self._exchange.read()
        if pieces:
            self._limit = self._client.hang_seconds
            self.first_ns = self.first_ns or pieces[0][0]
            self.last_ns = pieces[-1][0]
        content = b"".join([piece for _, piece in pieces])
        if self.status < 400:
            is_stream = self.content_type.startswith(EVENTS)
            content = self._guard.passed(content, is_stream=is_stream, is_last=self._exchange.complete)
        self._tail.append(content)
        self._tail_bytes += len(content)
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        return content

    async def _has_more(self, writer: DirectWriter | None, seconds: float) -> bool:
        before_ns = self.last_ns
        on_arrival = None if writer is None else functools.partial(self._write_directly, writer)
        with contextlib.suppress(TimeoutError), self._exchange.handled_by(on_arrival):
            await self._exchange.wait(seconds)
            return True
        return self.last_ns != before_ns

    def _write_directly(self, writer: DirectWriter) -> bool:
        """Whether everything that arrived was written, and more is expected."""
        if not writer.free():
            return False
        try:
            content = self._take()
        except (ConnectionError, h11.RemoteProtocolError, EngineError):  # raised again in the task that waits
            return False
        if content:
            writer.write(content)
        return not self._exchange.complete

    def _end(self) -> None:
        self.complete = True
        if self.status < 400:
            self._guard.check()
        finished = self.complete_timings(Finished(self.last_ns, "relayed", timings_in(b"".join(self._tail))))
        self.timings = finished.timings


def timings_in(answer: bytes) -> Timings | None:
    """The last timings in the bytes of an answer. Text of the model cannot be mistaken for them: its quotation marks
    are escaped."""
    _, key, rest = answer.rpartition(_TIMINGS)
    if not key:
        return None
    try:
        body, _ = json.JSONDecoder().raw_decode(rest.decode(errors="replace").lstrip())
        return Timings.parse(body)
    except (AttributeError, TypeError, ValueError):  # truncated, or something else of another engine
        return None


def _unchanged(finished: Finished) -> Finished:
    return finished


def _max_tokens_of(value: Any, *, key: str = "") -> int:
    """An upper bound of the prompt tokens in a body, by its characters. The other fields are short."""
    if key in _MEDIA_FIELDS:
        return _MEDIA_TOKENS * (len(value) if isinstance(value, list) else 1)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_max_tokens_of(part, key=str(name)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return sum(_max_tokens_of(part) for part in value)
    return 1

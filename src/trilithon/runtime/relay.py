"""An engine's answer passed on as it comes: whoever speaks the engine's dialect needs its bytes and no events.

Per piece nothing is done but to note when it came; of the whole only the last part is looked at, once it is over, for
the engine's own clock.
"""

import contextlib
import functools
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import h11

from trilithon.engines.wire.messages import NO_PINGS, Finished, HandoverResult, Timings
from trilithon.runtime.client import Client
from trilithon.runtime.engine_errors import refusal, translated
from trilithon.runtime.exchange import Exchange

__all__ = ["DirectWriter", "Relayed", "timings_in"]

Asked = Callable[[Awaitable[None]], Awaitable[None]]
"""Waits for it, and explains what goes wrong."""

# An answer's clock stands at its end; before it may stand the prompt or the usage, after it probabilities.
_TAIL_BYTES = 1 << 16
_TIMINGS = b'"timings":'
# Of what is no text an engine makes so many tokens at most, as far as anybody waits longer for it.
_PICTURE_TOKENS = 4096
_LONGEST_PROMPT = 1 << 17
_PICTURES = frozenset({"image_data", "image_url", "input_audio", "multimodal_data"})


class DirectWriter(Protocol):
    """Where bytes can go at once, and nobody has to be woken up for them."""

    def free(self) -> bool:
        """Whether it takes something now; else it has to be waited for."""

    def write(self, content: bytes) -> None: ...


class Relayed:
    """One answer under way; use `Runner.relay`. Read it once, by `chunks` or by `read`, which raise RunError.

    `handover` is what a handover did for it. `first_ns` and `last_ns` (monotonic; 0 before) are when the first and the
    last of the body came. `timings`, of the request as a whole, are there when it is `complete`.
    """

    def __init__(self, client: Client, exchange: Exchange, asked: Asked, first_seconds: float):
        self.handover: HandoverResult | None = None
        self.timings: Timings | None = None
        self.first_ns = self.last_ns = 0
        self.complete = False
        self.settle: Callable[[Finished], Finished] = _as_it_is
        self._client = client
        self._exchange = exchange
        self._asked = asked
        self._limit = first_seconds
        self._content = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, client: Client, path: str, body: Mapping[str, Any], asked: Asked, *, most_tokens: int | None = None
    ) -> AsyncIterator["Relayed"]:
        """Send the request and wait for the head of the answer. Leaving closes the connection, which cancels what is
        still under way. The prompt gets time for as many tokens as it may have, and `most_tokens` at most. Raises
        Refused when the engine answers with an error."""
        if body.get("stream"):
            body = {**body, "sse_ping_interval": NO_PINGS}
        tokens = min(_tokens_at_most(body), most_tokens or _LONGEST_PROMPT)
        limit = client.hang_seconds + client.patience_seconds(tokens)
        exchange = client.exchange(path, body)
        async with contextlib.AsyncExitStack() as opened:
            relayed: list[Relayed] = []

            async def connect() -> None:
                with translated(limit):
                    relayed.append(cls(client, await opened.enter_async_context(exchange), asked, limit))

            await asked(connect())
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
            await self._asked(self._arrival(writer))

    async def chunks(self, writer: DirectWriter | None = None) -> AsyncGenerator[bytes, None]:
        """The body's bytes; what arrived together comes together. What arrives while this waits goes to `writer` as
        long as that is free, and is not given here."""
        while not self.complete:
            content, self._content = self._content, b""
            if content:
                yield content
            elif self._exchange.complete:
                self._end()
            else:
                await self._asked(self._arrival(writer))

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def _read_head(self) -> None:
        while not self.status:
            await self._asked(self._arrival())
        if self.status >= 400:
            raise refusal(self.status, await self.read())

    async def _arrival(self, outlet: DirectWriter | None = None) -> None:
        """Until there is more; raises Disconnected, Hung."""
        with translated(self._limit):
            await self._client.watch(functools.partial(self._arrived, outlet), self._limit)
            self._content += self._take()

    def _take(self) -> bytes:
        pieces = self._exchange.read()
        if not pieces:
            return b""
        self._limit = self._client.hang_seconds
        self.first_ns = self.first_ns or pieces[0][0]
        self.last_ns = pieces[-1][0]
        content = b"".join([piece for _, piece in pieces])
        self._tail.append(content)
        self._tail_bytes += len(content)
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        return content

    async def _arrived(self, outlet: DirectWriter | None, seconds: float) -> bool:
        before_ns = self.last_ns
        passed_on = None if outlet is None else functools.partial(self._passed_on, outlet)
        with contextlib.suppress(TimeoutError), self._exchange.diverted(passed_on):
            await self._exchange.wait(seconds)
            return True
        return self.last_ns != before_ns

    def _passed_on(self, outlet: DirectWriter) -> bool:
        """Whether all that came went on, and more is to come."""
        if not outlet.free():
            return False
        try:
            content = self._take()
        except (ConnectionError, h11.RemoteProtocolError):  # raised again for who waits
            return False
        if content:
            outlet.write(content)
        return not self._exchange.complete

    def _end(self) -> None:
        self.complete = True
        finished = self.settle(Finished(self.last_ns, "relayed", timings_in(b"".join(self._tail))))
        self.timings = finished.timings


def timings_in(answer: bytes) -> Timings | None:
    """The last ones in it. In a text, which comes from the model, each quotation mark would be escaped, so that it
    cannot be mistaken for them."""
    _, found, rest = answer.rpartition(_TIMINGS)
    if not found:
        return None
    try:
        body, _ = json.JSONDecoder().raw_decode(rest.decode(errors="replace").lstrip())
        return Timings.parse(body)
    except (AttributeError, TypeError, ValueError):  # cut off, or of an engine that keeps something else there
        return None


def _as_it_is(finished: Finished) -> Finished:
    return finished


def _tokens_at_most(value: Any, *, key: str = "") -> int:
    """How many prompt tokens may be in a body, by its characters; the fields that are no prompt are short."""
    if key in _PICTURES:
        return _PICTURE_TOKENS * (len(value) if isinstance(value, list) else 1)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_tokens_at_most(part, key=str(name)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return sum(_tokens_at_most(part) for part in value)
    return 1

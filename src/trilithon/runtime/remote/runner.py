"""A server that Trilithon did not start, with the methods that a measurement uses of a runner.

The client talks to the server itself, without a child between the two: the times are those of its own clock."""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from trilithon.engines.base import Placement
from trilithon.engines.remote.asking import RemoteServer, api_key, ask_server
from trilithon.engines.remote.dialects import dialect_of
from trilithon.engines.remote.placing import writes_tokens
from trilithon.engines.wire.dialect import Dialect
from trilithon.engines.wire.messages import Candidate, Chat, Completion, Event, Finished, Timings, Token
from trilithon.errors import ChildDied, PlacementError, StartError
from trilithon.runtime.client import Client
from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.engine_errors import Disconnected
from trilithon.runtime.remote.clock import Arrivals, held_against_clock, is_plausible

__all__ = ["RemoteRunner"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
T = TypeVar("T")

_CONNECT_SECONDS = 10.0
# Short words of every day: one token each in the vocabularies of Llama, Qwen, Gemma and Phi, with the space before it.
_WORDS = files("trilithon.runtime.remote").joinpath("words.txt").read_text(encoding="utf-8").split()
# Text that asks for an answer that does not end early.
_GO_ON = " Write a very long story with all of these words. It has many chapters. Chapter one:"


class RemoteEndpoint(Endpoint):
    """`address` is http://HOST:PORT, with a path where the API is below one."""

    def __init__(self, address: str, *, key: str = "", dialect: Dialect | None = None) -> None:
        super().__init__(Path(), key=key, dialect=dialect)
        parts = urlsplit(address)
        self.host, self.prefix = parts.netloc, parts.path
        self._name = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._remote_port = parts.port or (443 if self._tls else 80)

    async def connect(self, protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await loop.create_connection(protocol, self._name, self._remote_port, ssl=self._tls)
        except TimeoutError as error:
            raise ConnectionRefusedError(f"no connection after {_CONNECT_SECONDS:g} s") from error


class RemoteRunner:
    """Use `RemoteRunner.open`. Requests raise RunError. `notices` are what is to be said about the server's figures.

    A server that takes text only has a vocabulary of words here, so that a prompt of token ids is one of as many
    words; the server counts its tokens itself."""

    def __init__(self, placement: Placement, client: Client, server: RemoteServer) -> None:
        self.placement = placement
        self.client = client
        self.started_ns = self.ready_ns = time.monotonic_ns()
        self._round_trip_ms = server.round_trip_seconds * 1e3
        by = "the server's timings" if server.api != "OpenAI API" else "the server's counts"
        words = f"through HTTP: {server.api} {server.version}".strip()
        model = dict(placement.settings.options)["model"]
        self._notices = {f"{words}, model {model}; pp and tg by {by}, the question by the client's clock": None}
        self._streams = not writes_tokens(placement)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, placement: Placement, *, hang_seconds: float) -> AsyncIterator["RemoteRunner"]:
        """Raises StartError where the server does not answer, or is another one than at the start."""
        options, build = dict(placement.settings.options), placement.build
        try:
            key = api_key(options.get("key"))
            server = await asyncio.to_thread(ask_server, options["address"], key)
        except PlacementError as error:
            raise StartError(str(error), cause="no server answers") from error
        if (server.api.replace(" ", "-"), server.version) != (build.name, build.version):
            raise StartError(
                f"{placement.name} is now {server.api} {server.version}, and was {build.name} {build.version}",
                cause="another server",
                advice="leave the server as it is while it is measured",
            )
        context = int(options["context"]) if "context" in options else None
        dialect = dialect_of(server.api, options["model"], context)
        endpoint = RemoteEndpoint(options["address"], key=key, dialect=dialect)
        yield cls(placement, Client(endpoint, hang_seconds=hang_seconds), server)

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(self._notices)

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """As `Runner.complete`. There are timings always; a count of 0 is one that the server does not state."""
        started_ns = time.monotonic_ns()
        events, finished = await self._answer(self.client.complete(self._written(request)))
        tokens = [event for event in events if isinstance(event, Token) and event.text]
        arrivals = Arrivals.of(started_ns, tokens, finished.at_ns)
        return events, self._held(finished, arrivals)

    async def timed(self, request: Completion) -> Finished:
        """As `Runner.timed`; as a stream where the server's own timings are not to be believed."""
        if not self._streams:
            started_ns = time.monotonic_ns()
            finished = await self._answer(self.client.timed(request))
            elapsed_ms = (finished.at_ns - started_ns) / 1e6
            stated = finished.timings
            if stated is None or is_plausible(stated.prompt_ms + stated.predicted_ms, elapsed_ms, self._round_trip_ms):
                return finished
            self._streams = True
        return (await self.complete(request))[1]

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        return await self._answer(self.client.distribution(request))

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return await self._answer(self.client.tokenize(text, add_special=add_special))

    async def vocabulary_size(self) -> int:
        if not writes_tokens(self.placement):
            return len(_WORDS)
        return await self._answer(self.client.vocabulary_size())

    def _written(self, request: Completion | Chat) -> Completion | Chat:
        """A prompt of token ids as words, where the server takes only these."""
        if isinstance(request, Chat) or isinstance(request.prompt, str) or writes_tokens(self.placement):
            return request
        # Never the same beginning: what a server has in its cache is not evaluated.
        words = [str(random.randrange(10)), *(_WORDS[token] for token in request.prompt)]
        return replace(request, prompt=" ".join(words) + (_GO_ON if request.max_tokens > 1 else ""))

    def _held(self, finished: Finished, arrivals: Arrivals) -> Finished:
        stated = finished.timings or Timings(0, 0, 0.0, 0, 0.0)
        timings, notes = held_against_clock(stated, arrivals, self._round_trip_ms)
        self._notices |= dict.fromkeys(notes)
        return replace(finished, timings=timings)

    async def _answer(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except Disconnected as error:
            raise ChildDied(
                f"{self.placement.name}: {error}",
                cause="the server ended the connection",
                advice="see the server's log, and start it again",
            ) from error

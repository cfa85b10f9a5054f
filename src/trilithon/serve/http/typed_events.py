"""What the dialects share whose streams are events with types: Anthropic's messages and OpenAI's responses."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from fastapi import Request

from trilithon.engines.base import Feature
from trilithon.serve.generation import End, Generation, Piece
from trilithon.serve.passthrough import event, timings_of, with_pictures
from trilithon.serve.service import Answer

__all__ = ["EventsRequest", "Writer", "asked_of", "events_of", "read"]


class EventsRequest(Protocol):
    """A request in the engine's words."""

    @property
    def chat(self) -> dict[str, Any]: ...

    @property
    def needs(self) -> frozenset[Feature]: ...


class Writer(Protocol):
    """Keeps the whole answer as far as it has come, and gives the events of each step."""

    def opening(self) -> list[dict[str, Any]]: ...

    def feed(self, piece: Piece) -> list[dict[str, Any]]: ...

    def close(self, end: End, provenance: Mapping[str, Any]) -> list[dict[str, Any]]: ...


async def asked_of(request: Request, model: str, asked: EventsRequest, **residence: Any) -> Generation:
    """With the pictures in place of their addresses; `residence` are fields of a Generation. Raises ApiError for what
    is no picture."""
    await with_pictures(request, asked.chat["messages"])
    return Generation(model=model, path="/v1/chat/completions", body=asked.chat, needs=asked.needs, **residence)


async def read(answer: Answer, writer: Writer) -> None:
    """The whole answer into the writer."""
    async for part in answer.events():
        if isinstance(part, End):
            writer.close(part, timings_of(answer))
        else:
            writer.feed(part)


async def events_of(answer: Answer, writer: Writer) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    for body in writer.opening():
        yield event(body, body["type"])
    async for part in answer.events():
        events = writer.close(part, timings_of(answer)) if isinstance(part, End) else writer.feed(part)
        if events:
            yield b"".join(event(body, body["type"]) for body in events)

"""Answers on their way through: from the service to the client, in the engine's bytes or one after the other."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request

from trilithon.engines.wire.bodies import timings_body
from trilithon.runtime.relay import DirectWriter
from trilithon.serve.generation import Generation
from trilithon.serve.http.dialects import caller_of, service_of
from trilithon.serve.http.keep_alive import EVENTS
from trilithon.serve.http.streaming import Opening, Outgoing, placement_header
from trilithon.serve.images.reading import ImagePolicy, data_url, fetch_image
from trilithon.serve.model_names import ModelNames
from trilithon.serve.service import Answer
from trilithon.serve.validation import ignoring_header

__all__ = ["event", "headers_of", "in_turn", "passed", "timings_of", "with_pictures"]

_ALL_PICTURES_BYTES = 64 << 20


def event(body: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def headers_of(answer: Answer, ignored: Sequence[str]) -> dict[str, str]:
    return placement_header(answer.placement) | ignoring_header((*ignored, *answer.ignored))


def timings_of(answer: Answer) -> dict[str, Any]:
    """The engine's own clock, and which unit did what; of an answer that is over."""
    timings = answer.end.timings if answer.end else None
    return (timings_body(timings) if timings else {}) | answer.provenance()


def passed(request: Request, generation: Generation, ignored: Sequence[str] = ()) -> Opening:
    """The engine's own bytes, but for the model's name."""
    service, caller = service_of(request), caller_of(request)

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with service.answer(generation, caller) as answer:
            renaming = ModelNames(answer.placement.file.path, generation.model or answer.entry.name)
            headers = headers_of(answer, ignored)
            if generation.body.get("stream"):
                body = functools.partial(_renamed, answer, renaming)
                yield Outgoing(body=body, content_type=EVENTS, headers=headers)
            else:
                yield Outgoing(body=renaming.whole(await answer.read()), headers=headers)

    return opening


async def _renamed(answer: Answer, renaming: ModelNames, outlet: DirectWriter) -> AsyncIterator[bytes]:
    async for chunk in await answer.chunks(_RenamingWriter(outlet, renaming)):
        if named := renaming.feed(chunk):
            yield named
    if rest := renaming.finish():
        yield rest


class _RenamingWriter:
    def __init__(self, outlet: DirectWriter, renaming: ModelNames):
        self._outlet = outlet
        self._renaming = renaming

    def free(self) -> bool:
        return self._outlet.free()

    def write(self, content: bytes) -> None:
        if named := self._renaming.feed(content):
            self._outlet.write(named)


@contextlib.asynccontextmanager
async def in_turn(
    request: Request, generations: Sequence[Generation]
) -> AsyncIterator[tuple[Answer, AsyncIterator[Answer]]]:
    """The first answer, and all of them. Each is left before the next is asked for: with one slot, the second would
    wait for the first for ever."""
    service, caller = service_of(request), caller_of(request)
    async with contextlib.AsyncExitStack() as held:
        first = await held.enter_async_context(service.answer(generations[0], caller))

        async def answers() -> AsyncIterator[Answer]:
            yield first
            for generation in generations[1:]:
                await held.aclose()
                yield await held.enter_async_context(service.answer(generation, caller))

        yield first, answers()


async def with_pictures(request: Request, messages: Sequence[Mapping[str, Any]]) -> None:
    """Look at every picture and put it in place of its address. Raises Problem for what is none."""
    policy = ImagePolicy(fetch_remote=request.app.state.access.fetch_images)
    left = _ALL_PICTURES_BYTES  # a short body can name a thousand addresses
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") == "image_url":
                image = part["image_url"]
                data = await fetch_image(image["url"], replace(policy, most_bytes=min(policy.most_bytes, left)))
                left -= len(data)
                image["url"] = await asyncio.to_thread(data_url, data)

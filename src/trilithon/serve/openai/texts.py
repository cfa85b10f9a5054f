"""OpenAI's older endpoint, answered: the pieces of `/completion` as its choices, whole or streamed."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import Generation, Piece
from trilithon.serve.http.keep_alive import EVENTS
from trilithon.serve.http.streaming import Opening, Outgoing
from trilithon.serve.openai.completions import legacy_logprobs, usage_of
from trilithon.serve.passthrough import event, headers_of, in_turn, timings_of
from trilithon.serve.service import Answer

__all__ = ["CompletionAsked", "completed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionAsked:
    """A request to `/v1/completions` as it is answered: one generation for each choice, with what is repeated before
    it; `choices` of them to each prompt."""

    id: str
    created: int
    model: str
    generations: Sequence[Generation]
    echoes: Sequence[str]
    candidates: int | None
    usage: bool
    choices: int

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def choice(self, at: int, text: str, pieces: Sequence[Piece], offset: int, reason: str | None) -> dict[str, Any]:
        told = self.candidates is not None and bool(pieces)
        logprobs = legacy_logprobs(pieces, offset, self.candidates or 0) if told else None
        return {"text": text, "index": at, "logprobs": logprobs, "finish_reason": reason}


def completed(request: Request, asked: CompletionAsked, ignored: Sequence[str], *, stream: bool) -> Opening:
    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, asked.generations) as (first, answers):
            headers = headers_of(first, ignored)
            if stream:
                yield Outgoing(body=_completion_events(asked, answers), content_type=EVENTS, headers=headers)
            else:
                whole = await _whole_completion(asked, answers)
                yield Outgoing(body=json.dumps(whole, ensure_ascii=False).encode(), headers=headers)

    return opening


async def _whole_completion(asked: CompletionAsked, answers: AsyncIterator[Answer]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    timings: list[Timings | None] = []
    provenance: dict[str, Any] = {}
    async for answer in answers:
        pieces = [part async for part in answer.events() if isinstance(part, Piece)]
        echo = asked.echoes[len(choices)]
        text = echo + "".join(piece.text for piece in pieces)
        choices.append(asked.choice(len(choices), text, pieces, len(echo), answer.end.reason if answer.end else None))
        timings.append(answer.end.timings if answer.end else None)
        provenance = timings_of(answer)
    return asked.chunk(choices, usage=usage_of(timings, asked.choices), timings=provenance)


async def _completion_events(asked: CompletionAsked, answers: AsyncIterator[Answer]) -> AsyncIterator[bytes]:
    at, ends = 0, []
    async for answer in answers:
        offset = len(asked.echoes[at])
        if asked.echoes[at]:
            yield event(asked.chunk([asked.choice(at, asked.echoes[at], (), 0, None)]))
        async for part in answer.events():
            if isinstance(part, Piece):
                yield event(asked.chunk([asked.choice(at, part.text, [part], offset, None)]))
                offset += len(part.text)
            else:
                ends.append(part.timings)
                yield event(asked.chunk([asked.choice(at, "", (), offset, part.reason)], timings=timings_of(answer)))
        at += 1
    if asked.usage:
        yield event(asked.chunk([], usage=usage_of(ends, asked.choices)))
    yield b"data: [DONE]\n\n"

"""OpenAI's Responses API, without memory: each request brings its whole conversation."""

import contextlib
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from trilithon.errors import TrilithonError
from trilithon.serve.http.errors import api_error_of
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.openapi import STREAMED
from trilithon.serve.http.streaming import EVENTS, Outgoing, Reply
from trilithon.serve.http.typed_events import asked_of, events_of, read
from trilithon.serve.openai.responses_bodies import ResponseBody, response_asked
from trilithon.serve.openai.responses_events import ResponseWriter
from trilithon.serve.passthrough import event, headers_of, in_turn
from trilithon.serve.request_record import note_broken
from trilithon.serve.service import Answer

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)


@router.post("/responses", responses=STREAMED)
async def respond(request: Request, body: ResponseBody) -> Response:
    """An answer as items: thoughts, messages, calls of functions; streamed as events, or whole."""
    asked = response_asked(body.model_dump(exclude_none=True))
    generation = await asked_of(request, body.model, asked)

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [generation]) as (answer, _):
            writer = ResponseWriter(model=body.model, created=int(time.time()), settings=asked.settings)
            headers = headers_of(answer, asked.ignored)
            if body.stream:
                yield Outgoing(body=_events(answer, writer), content_type=EVENTS, headers=headers)
            else:
                await read(answer, writer)
                yield Outgoing(body=json.dumps(writer.response, ensure_ascii=False).encode(), headers=headers)

    return Reply(opening)


async def _events(answer: Answer, writer: ResponseWriter) -> AsyncIterator[bytes]:
    try:
        async for line in events_of(answer, writer):
            yield line
    except TrilithonError as error:
        note_broken(error)
        for body in writer.failed(api_error_of(error)):
            yield event(body, body["type"])

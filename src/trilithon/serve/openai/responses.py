"""OpenAI's Responses API, without memory: each request brings its whole conversation."""

import contextlib
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response

from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import EVENTS, StreamForm
from trilithon.serve.http.openapi import STREAMED
from trilithon.serve.http.streaming import Outgoing, Reply
from trilithon.serve.http.typed_events import asked_of, events_of, read
from trilithon.serve.openai.responses_bodies import ResponseBody, response_asked
from trilithon.serve.openai.responses_events import ResponseWriter
from trilithon.serve.passthrough import event, headers_of, in_turn
from trilithon.serve.validation import ignoring_header

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)


@router.post("/responses", responses=STREAMED)
async def respond(request: Request, body: ResponseBody) -> Response:
    """An answer as items: thoughts, messages, calls of functions; streamed as events, or whole."""
    asked = response_asked(body.model_dump(exclude_none=True))
    generation = await asked_of(request, body.model, asked)

    writer = ResponseWriter(model=body.model, created=int(time.time()), settings=asked.settings)

    def broken(problem: ApiError) -> bytes:
        return b"".join(event(body, body["type"]) for body in writer.failed(problem))

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [generation]) as (answer, _):
            headers = headers_of(answer, asked.ignored)
            if body.stream:
                yield Outgoing(body=events_of(answer, writer), content_type=EVENTS, headers=headers)
            else:
                await read(answer, writer)
                yield Outgoing(body=json.dumps(writer.response, ensure_ascii=False).encode(), headers=headers)

    return Reply(opening, StreamForm(broken=broken) if body.stream else None, ignoring_header(asked.ignored))

"""OpenAI's Responses API: each request brings its whole conversation, or goes on from a stored response."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import EVENTS, StreamForm
from trilithon.serve.http.openapi import ERRORS, STREAMED
from trilithon.serve.http.streaming import Outgoing, Reply
from trilithon.serve.http.typed_events import asked_of, events_of, read
from trilithon.serve.openai.response_store import ResponseStore
from trilithon.serve.openai.responses_bodies import ResponseBody, response_asked
from trilithon.serve.openai.responses_events import ResponseWriter
from trilithon.serve.openai.tools import custom_names
from trilithon.serve.passthrough import event, headers_of, in_turn
from trilithon.serve.service import Answer
from trilithon.serve.validation import ignoring_header

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)


@router.post("/responses", responses=STREAMED)
async def respond(request: Request, body: ResponseBody) -> Response:
    """An answer as items: thoughts, messages, calls of functions; streamed as events, or whole."""
    store, owner = _store_of(request), _owner_of(request)
    earlier = await store.conversation(body.previous_response_id, owner) if body.previous_response_id else []
    asked = response_asked(body.model_dump(exclude_none=True), earlier)
    generation = await asked_of(request, body.model, asked, **body.residence())
    custom = custom_names(body.tools or ())

    settings = asked.settings | {"store": store.keeps and body.store is not False}
    writer = ResponseWriter(model=body.model, created=int(time.time()), settings=settings, custom=custom)

    async def keep() -> None:
        if settings["store"]:
            writer.response["store"] = await store.put(writer.response, body.items(), owner)

    def broken(problem: ApiError) -> bytes:
        return b"".join(event(body, body["type"]) for body in writer.failed(problem))

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [generation]) as (answer, _):
            headers = headers_of(answer, asked.ignored)
            if body.stream:
                yield Outgoing(body=_kept_events(answer, writer, keep), content_type=EVENTS, headers=headers)
                return
            await read(answer, writer)
        await keep()  # the engine is free meanwhile
        yield Outgoing(body=json.dumps(writer.response, ensure_ascii=False).encode(), headers=headers)

    return Reply(opening, StreamForm(broken=broken) if body.stream else None, ignoring_header(asked.ignored))


@router.get("/responses/{response_id}", responses=ERRORS)
async def response(request: Request, response_id: str) -> Response:
    """A stored response."""
    stored = await _store_of(request).get(response_id, _owner_of(request))
    return Response(stored.response, media_type="application/json")


@router.get("/responses/{response_id}/input_items", responses=ERRORS)
async def input_items(request: Request, response_id: str) -> Response:
    """The input of a stored response, without that of the responses before it."""
    stored = await _store_of(request).get(response_id, _owner_of(request))
    content = b'{"object":"list","data":%b,"has_more":false}' % stored.items
    return Response(content, media_type="application/json")


@router.delete("/responses/{response_id}", responses=ERRORS)
async def remove(request: Request, response_id: str) -> JSONResponse:
    """A stored response, and with it the way back from those that go on from it."""
    await _store_of(request).remove(response_id, _owner_of(request))
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _store_of(request: Request) -> ResponseStore:
    store = request.app.state.responses
    assert isinstance(store, ResponseStore)
    return store


def _owner_of(request: Request) -> str:
    return str(getattr(request.state, "key_name", ""))


async def _kept_events(
    answer: Answer, writer: ResponseWriter, keep: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """Kept before the client hears of the end: its next request may follow at once."""
    async for events in events_of(answer, writer):
        if writer.response["status"] != "in_progress":
            await keep()
        yield events

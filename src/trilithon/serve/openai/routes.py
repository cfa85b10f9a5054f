"""OpenAI's API: chat, completions, embeddings and the list of models. Responses have a module of their own."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from trilithon.errors import EngineError
from trilithon.serve.catalog.catalog import CatalogEntry
from trilithon.serve.generation import Generation
from trilithon.serve.http.dialects import error_body, service_of
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import EVENTS, StreamForm
from trilithon.serve.http.openapi import ERRORS, STREAMED
from trilithon.serve.http.streaming import Opening, Outgoing, Reply
from trilithon.serve.model_names import ModelNames
from trilithon.serve.openai.bodies import OpenAIChatBody, chat_body
from trilithon.serve.openai.choices import Merging, merged, with_seed
from trilithon.serve.openai.completions import CompletionBody, completion_body, prompts_of
from trilithon.serve.openai.embeddings import EmbeddingBody, embedding_body, shaped
from trilithon.serve.openai.texts import CompletionAsked, completed
from trilithon.serve.openai.tools import custom_names
from trilithon.serve.passthrough import event, headers_of, in_turn, passed, with_pictures
from trilithon.serve.service import Answer
from trilithon.serve.validation import ignoring_header

__all__ = ["STREAM", "router", "unversioned"]

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)
unversioned = APIRouter(include_in_schema=False, route_class=JsonRoute)
"""As llama-server answers them, for clients whose base URL lacks /v1."""


def _broken(problem: ApiError) -> bytes:
    """As OpenAI's clients read it."""
    return event(error_body("/v1/", problem))


STREAM = StreamForm(broken=_broken)


@router.post("/chat/completions", responses=STREAMED)
@unversioned.post("/chat/completions")
async def chat(request: Request, body: OpenAIChatBody) -> Response:
    """A chat. Tools, JSON and JSON schemas, log-probabilities, images as data URLs, `n` answers, streamed or whole;
    llama-server's own sampling fields too."""
    admitted, needs = chat_body(body.model_dump(exclude_none=True))
    custom = custom_names(body.tools or ())
    await with_pictures(request, admitted.body["messages"])
    asked = [
        Generation(
            model=body.model,
            path="/v1/chat/completions",
            body=with_seed(admitted.body, choice),
            needs=needs,
            custom_tools=custom,
            **body.residence(),
        )
        for choice in range(body.n or 1)
    ]
    opening = (
        passed(request, asked[0], admitted.ignored) if len(asked) == 1 else _several(request, asked, admitted.ignored)
    )
    return Reply(opening, STREAM if body.stream else None, ignoring_header(admitted.ignored))


def _several(request: Request, asked: Sequence[Generation], ignored: Sequence[str]) -> Opening:
    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, asked) as (first, answers):
            headers = headers_of(first, ignored)
            if asked[0].body.get("stream"):
                yield Outgoing(body=_numbered(answers, asked[0].model), content_type=EVENTS, headers=headers)
            else:
                wholes = [_parsed(await _whole(answer, asked[0].model)) async for answer in answers]
                yield Outgoing(body=json.dumps(merged(wholes), ensure_ascii=False).encode(), headers=headers)

    return opening


async def _whole(answer: Answer, model: str) -> bytes:
    return ModelNames(answer.placement.file.path, model).whole(await answer.read())


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
        parsed["choices"][0]
    except (ValueError, TypeError, LookupError) as error:
        raise EngineError("the engine's answer is not a chat completion", status=502, cause="bad answer") from error
    assert isinstance(parsed, dict)
    return parsed


async def _numbered(answers: AsyncIterator[Answer], model: str) -> AsyncIterator[bytes]:
    merging, choice = Merging(), 0
    async for answer in answers:
        renaming = ModelNames(answer.placement.file.path, model)
        async for chunk in await answer.chunks():
            if named := merging.feed(renaming.feed(chunk), choice):
                yield named
        choice += 1
    yield merging.finish()


@router.post("/completions", responses=STREAMED)
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue a text, or several."""
    fields = body.model_dump(exclude_none=True)
    admitted, needs = completion_body(fields)
    prompts = prompts_of(body.prompt)
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError("echo needs the prompt as a text; send one, or leave out echo", status=400, field="echo")
    asked = [(prompt, choice) for prompt in prompts for choice in range(body.n or 1)]
    whole = CompletionAsked(
        choices=body.n or 1,
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        generations=[
            Generation(
                model=body.model,
                path="/completion",
                body={**with_seed(admitted.body, choice), "prompt": prompt},
                needs=needs,
                **body.residence(),
            )
            for prompt, choice in asked
        ],
        echoes=[str(prompt) if body.echo else "" for prompt, _ in asked],
        candidates=body.logprobs,
        usage=bool((body.stream_options or {}).get("include_usage")),
    )
    opening = completed(request, whole, admitted.ignored, stream=bool(body.stream))
    return Reply(opening, STREAM if body.stream else None, ignoring_header(admitted.ignored))


@router.post("/embeddings", responses=ERRORS)
async def embeddings(request: Request, body: EmbeddingBody) -> Response:
    """One vector for each input."""
    admitted = embedding_body(body.model_dump(exclude_none=True))
    asked = Generation(
        model=body.model, path="/v1/embeddings", body=admitted.body, needs=frozenset({"embeddings"}), **body.residence()
    )

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [asked]) as (answer, _):
            answer_body = shaped(
                await answer.read(),
                model=body.model or answer.entry.name,
                dimensions=body.dimensions,
                base64_wanted=body.encoding_format == "base64",
            )
            yield Outgoing(body=json.dumps(answer_body).encode(), headers=headers_of(answer, admitted.ignored))

    return Reply(opening)


@router.get("/models", responses=ERRORS)
@unversioned.get("/models")
async def models(request: Request) -> JSONResponse:
    """Every model that can be served; in Anthropic's form for its clients."""
    entries = await asyncio.to_thread(service_of(request).shelf.listed)
    if "anthropic-version" in request.headers:
        data = [_anthropic_model(entry) for entry in entries]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return JSONResponse({"data": data, "has_more": False, **ends})
    return JSONResponse({"object": "list", "data": [_model(entry) for entry in entries]})


@router.get("/models/{name:path}", responses=ERRORS)
async def model(request: Request, name: str) -> JSONResponse:
    """One model."""
    entry = await asyncio.to_thread(service_of(request).shelf.shown, name)
    return JSONResponse(_anthropic_model(entry) if "anthropic-version" in request.headers else _model(entry))


def _model(entry: CatalogEntry) -> dict[str, Any]:
    created = int(datetime.fromisoformat(entry.modified).timestamp())
    return {"id": entry.name, "object": "model", "created": created, "owned_by": "trilithon"}


def _anthropic_model(entry: CatalogEntry) -> dict[str, Any]:
    return {"type": "model", "id": entry.name, "display_name": entry.name, "created_at": entry.modified}

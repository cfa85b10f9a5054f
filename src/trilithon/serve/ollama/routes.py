"""Ollama's API for running models: generate, chat, embeddings, and what clients look at first."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response

from trilithon import __version__
from trilithon.errors import ContextExceeded, EngineError, ModelError
from trilithon.runtime.engine_errors import json_object, well_formed
from trilithon.serve.generation import Generation, Piece
from trilithon.serve.http.bare_page import bare_page, wants_page
from trilithon.serve.http.dialects import caller_of, service_of
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import NDJSON
from trilithon.serve.http.streaming import Opening, Outgoing, Reply
from trilithon.serve.ollama.answers import STREAM, LineWriter, chat_wrapped, durations, generate_wrapped, line
from trilithon.serve.ollama.bodies import ERRORS, EmbedBody, EmbeddingsBody, GenerateBody, OllamaChatBody
from trilithon.serve.ollama.convert import KnownModel, OllamaRequest, chat_asked, embed_asked, generate_asked, not_found
from trilithon.serve.ollama.options import keep_alive_seconds, sampling_of
from trilithon.serve.passthrough import headers_of, timings_of
from trilithon.serve.service import Answer, Service
from trilithon.serve.validation import ignoring_header, wrong

__all__ = ["known_model", "router"]

_FOLLOWED: Final = "0.33.0"
"""The Ollama whose API this is: clients hold features against its number."""
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {NDJSON: {}, "application/json": {}}, "description": "One line per token, or one object"},
    **ERRORS,
}
_NO_LOAD: Final = {"load_duration": 0}
"""ollama-ai-provider-v2 (npm) refuses embeddings without it, whether anything was loaded or not."""
_NO_SUCH_PATH = (404, 501)

router = APIRouter(tags=["Ollama"], route_class=JsonRoute)


@router.get("/", response_class=PlainTextResponse)
@router.head("/", response_class=PlainTextResponse, include_in_schema=False)
async def root(request: Request) -> Response:
    """Clients look for these words; a person is told more."""
    if wants_page(request.scope):
        return bare_page(request)
    return PlainTextResponse("Ollama is running", headers={"Vary": "Accept"})


@router.get("/api/version", responses=ERRORS)
@router.head("/api/version", include_in_schema=False)
async def version() -> dict[str, str]:
    """`version` is that of the Ollama whose API is followed."""
    return {"version": _FOLLOWED, "trilithon": __version__}


@router.get("/api/status", responses=ERRORS)
async def status() -> dict[str, Any]:
    """Nothing here asks a cloud."""
    return {"cloud": {"disabled": True, "source": "trilithon"}}


@router.post("/api/generate", response_class=Response, responses=_ANSWERS)
async def generate(request: Request, body: GenerateBody) -> Response:
    known = await known_model(request, body.model)
    if not (body.prompt or body.suffix or body.images):
        return _loading(request, body, known, LineWriter(body.model, generate_wrapped))
    _require_text(known, body.model, "generate")
    # Some megabytes of pictures take a while.
    asked = await asyncio.to_thread(generate_asked, body, known) if body.images else generate_asked(body, known)
    writer = LineWriter(body.model, generate_wrapped, asked.top_logprobs)
    return _answering(request, asked, writer, stream=body.stream is not False)


@router.post("/api/chat", response_class=Response, responses=_ANSWERS)
async def chat(request: Request, body: OllamaChatBody) -> Response:
    known = await known_model(request, body.model)
    if not body.messages:
        return _loading(request, body, known, LineWriter(body.model, chat_wrapped))
    _require_text(known, body.model, "chat")
    pictures = any(message.images for message in body.messages)
    asked = await asyncio.to_thread(chat_asked, body, known) if pictures else chat_asked(body, known)
    writer = LineWriter(body.model, chat_wrapped, asked.top_logprobs)
    return _answering(request, asked, writer, stream=body.stream is not False)


@router.post("/api/embed", response_class=JSONResponse, responses=ERRORS)
async def embed(request: Request, body: EmbedBody) -> Response:
    await known_model(request, body.model)
    return _embedding(request, body, one=False)


@router.post("/api/embeddings", response_class=JSONResponse, responses=ERRORS)
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """The older form, for one text."""
    await known_model(request, body.model)
    fields = body.model_dump(exclude={"prompt"}, exclude_none=True)
    return _embedding(request, EmbedBody.model_validate({"input": body.prompt or ""} | fields), one=True)


async def known_model(request: Request, name: str) -> KnownModel:
    """Raises Problem, in Ollama's words, where there is none of that name."""
    service = service_of(request)
    if not name:
        raise wrong("model", "model is required")
    try:
        entry = await service.entry(name)
    except ModelError as error:
        raise not_found(name) from error
    if placement := service.pool.placements().get(entry.name):  # its header was read then
        return KnownModel(manifest=entry.manifest, file=placement.file)
    return KnownModel(manifest=entry.manifest, file=await asyncio.to_thread(service.shelf.file, entry))


# Generating


def _require_text(known: KnownModel, name: str, words: str) -> None:
    """Raises ApiError, in the words that Ollama's clients look for, for a model that generates no text."""
    if known.file.kind in ("embedding", "reranker"):
        raise wrong("model", f'"{name}" does not support {words}')


def _answering(request: Request, asked: OllamaRequest, writer: LineWriter, *, stream: bool) -> Reply:
    service, caller = service_of(request), caller_of(request)

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        with _infilling(asked.generation):
            async with service.answer(asked.generation, caller) as answer:
                headers = headers_of(answer, asked.ignored)
                bodies = _bodies(answer, writer)
                if stream:
                    lines = (line(body) async for body in bodies)
                    yield Outgoing(body=lines, content_type=NDJSON, headers=headers)
                else:
                    whole = writer.gathered([body async for body in bodies])
                    yield Outgoing(body=_json(whole), headers=headers)

    return Reply(opening, STREAM if stream else None, ignoring_header(asked.ignored))


async def _bodies(answer: Answer, writer: LineWriter) -> AsyncIterator[dict[str, Any]]:
    async for event in answer.events():
        if isinstance(event, Piece):
            for body in writer.piece(event):
                yield body
            continue
        total_ns = time.monotonic_ns() - answer.started_ns
        figures = durations(event.timings, total_ns=total_ns, load_seconds=answer.load_seconds)
        for body in writer.end(event, {"timings": timings_of(answer)} | figures):
            yield body


@contextlib.contextmanager
def _infilling(generation: Generation) -> Iterator[None]:
    """An engine without that endpoint, or a model without the tokens for it, cannot fill in."""
    try:
        yield
    except EngineError as error:
        if generation.path == "/infill" and error.status in _NO_SUCH_PATH:
            raise wrong("suffix", f'"{generation.model}" does not support insert') from error
        raise


# Loading and unloading


def _loading(request: Request, body: GenerateBody | OllamaChatBody, known: KnownModel, writer: LineWriter) -> Reply:
    """What an empty prompt is for. `keep_alive` 0 unloads."""
    service, caller = service_of(request), caller_of(request)
    keep, sampling = keep_alive_seconds(body.keep_alive), sampling_of(body.options, known.manifest.parameters)
    headers = ignoring_header((*body.unknown, *sampling.ignored))

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        started_ns, load_seconds = time.monotonic_ns(), 0.0
        if keep == 0:
            await service.unload(body.model)
        else:
            load_seconds = await service.load(body.model, caller, keep, sampling.context)
        figures = durations(None, total_ns=time.monotonic_ns() - started_ns, load_seconds=load_seconds)
        yield Outgoing(body=_json(writer.empty("unload" if keep == 0 else "load", figures)), headers=headers)

    return Reply(opening, STREAM if body.stream is not False else None, headers)


# Embeddings


def _embedding(request: Request, body: EmbedBody, *, one: bool) -> Reply:
    given = [body.input] if isinstance(body.input, str) else list(body.input or ())
    texts = [text for text in given if text] if isinstance(body.input, str) else given
    asked = embed_asked(body, texts)
    return Reply(_embedded(service_of(request), caller_of(request), body, asked, one=one))


def _embedded(service: Service, caller: str, body: EmbedBody, asked: OllamaRequest, *, one: bool) -> Opening:
    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        started_ns = time.monotonic_ns()
        if not asked.generation.body["input"]:
            empty: dict[str, Any] = {"embedding": []} if one else {"model": body.model, "embeddings": [], **_NO_LOAD}
            yield Outgoing(body=_json(empty), headers=ignoring_header(asked.ignored))
            return
        answer, embeddings = await _vectors(service, caller, body, asked)
        with well_formed("the embeddings", embeddings):
            vectors = [_shortened(row["embedding"], body.dimensions) for row in embeddings["data"]]
            count = int(embeddings["usage"]["prompt_tokens"])
        figures = durations(None, total_ns=time.monotonic_ns() - started_ns, load_seconds=answer.load_seconds)
        told = {"model": body.model, "embeddings": vectors, **_NO_LOAD, **figures, "prompt_eval_count": count}
        content = {"embedding": vectors[0]} if one else told
        yield Outgoing(body=_json(content), headers=headers_of(answer, asked.ignored))

    return opening


async def _vectors(
    service: Service, caller: str, body: EmbedBody, asked: OllamaRequest
) -> tuple[Answer, dict[str, Any]]:
    try:
        return await _posted(service, caller, asked.generation)
    except ContextExceeded:
        if body.truncate is False:
            raise
        texts = asked.generation.body["input"]
        cut, shorter = await _cut(service, caller, body, asked)
        if not cut:
            raise
        assert len(texts) == len(shorter)
        return await _posted(service, caller, embed_asked(body, shorter).generation)


async def _cut(service: Service, caller: str, body: EmbedBody, asked: OllamaRequest) -> tuple[bool, list[Any]]:
    """The texts that fit as they are, of the others as many tokens as do; and whether there are such."""
    shortened, cut = [], False
    for text in asked.generation.body["input"]:
        generation = Generation(
            model=body.model,
            path="/tokenize",
            body={"content": text, "add_special": True},
            needs=asked.generation.needs,
            keep_alive_seconds=asked.generation.keep_alive_seconds,
            context=asked.generation.context,
        )
        answer, told = await _posted(service, caller, generation)
        most = answer.placement.settings.context or math.inf
        with well_formed("the tokens", told):
            tokens = list(told["tokens"])
        if len(tokens) > most - 1:
            cut = True
            shortened.append([*tokens[: int(most) - 2], tokens[-1]])  # the last one may mark the end
        else:
            shortened.append(text)
    return cut, shortened


async def _posted(service: Service, caller: str, generation: Generation) -> tuple[Answer, dict[str, Any]]:
    async with service.answer(generation, caller) as answer:
        return answer, json_object(await answer.read())


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first so many numbers, at length 1 again."""
    if not dimensions or dimensions >= len(vector):
        return vector
    length = math.hypot(*vector[:dimensions])
    return [value / length if length else 0.0 for value in vector[:dimensions]]


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

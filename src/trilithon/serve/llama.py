"""llama-server's own endpoints, passed to the runner of a model: what has no place in the other dialects.

A body without `model` means the model that is loaded, or the only one there is, as llama-server's clients expect."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from trilithon import __version__
from trilithon.engines.base import Feature
from trilithon.serve.generation import Generation
from trilithon.serve.http.dialects import service_of
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.openapi import ERRORS, STREAMED
from trilithon.serve.http.streaming import Reply
from trilithon.serve.openai.bodies import LONGEST_NAME, chat_body
from trilithon.serve.openai.completions import prompts_of
from trilithon.serve.openai.routes import STREAM
from trilithon.serve.passthrough import passed
from trilithon.serve.validation import MOST_MESSAGES, MOST_TOOLS, ignoring_header, require_few, require_short, wrong

__all__ = ["router"]

router = APIRouter(tags=["llama-server"], route_class=JsonRoute)

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_MOST_DOCUMENTS = 1024
# Which conversation's memory to use, which adapters, and what to leave out are this server's to say.
_OURS = ("id_slot", "lora", "response_fields")


class _LlamaBody(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Name | None = None


class TokenizeBody(_LlamaBody):
    content: str | list[Any]


class DetokenizeBody(_LlamaBody):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1 << 20)]


class TemplateBody(_LlamaBody):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    enable_thinking: bool | None = None
    add_generation_prompt: bool | None = None


class RerankBody(_LlamaBody):
    query: str
    documents: Annotated[list[Any], Field(min_length=1, max_length=_MOST_DOCUMENTS)] | None = None
    texts: Annotated[list[Any], Field(min_length=1, max_length=_MOST_DOCUMENTS)] | None = None


class PlainCompletionBody(_LlamaBody):
    prompt: str | list[Any]
    stream: bool | None = None


@router.post("/tokenize", responses=ERRORS)
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """A text as the model's token ids; `with_pieces`, `add_special`, `parse_special` as in llama-server."""
    require_short(body.content if isinstance(body.content, str) else "", "content")
    return await _forwarded(request, "/tokenize", body)


@router.post("/detokenize", responses=ERRORS)
async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """Token ids as text."""
    return await _forwarded(request, "/detokenize", body)


@router.post("/apply-template", responses=ERRORS)
async def apply_template(request: Request, body: TemplateBody) -> Response:
    """The prompt that a chat becomes."""
    _require_texts(body.messages)
    fields = body.model_dump(exclude_none=True)
    known = {name: value for name, value in fields.items() if name in TemplateBody.model_fields}
    admitted, _ = chat_body(known)
    asked = TemplateBody.model_validate(admitted.body | {"model": body.model})
    return await _forwarded(request, "/apply-template", asked, ignored=sorted(fields.keys() - known.keys()))


@router.post("/rerank", responses=ERRORS)
@router.post("/v1/rerank", responses=ERRORS)
async def rerank(request: Request, body: RerankBody) -> Response:
    """How well each document answers the query; for models made for it."""
    if body.documents is None and body.texts is None:
        raise wrong("documents", "documents is missing; send a list of strings")
    return await _forwarded(request, "/v1/rerank", body, needs=frozenset({"embeddings"}))


@router.post("/completion", responses=STREAMED)
async def completion(request: Request, body: PlainCompletionBody) -> Response:
    """Continue a prompt, with everything that llama-server's own endpoint knows."""
    require_few(prompts_of(body.prompt), 1, "prompt")
    return await _forwarded(request, "/completion", body)


def _require_texts(messages: Sequence[Mapping[str, Any]]) -> None:
    """llama-server would fetch a picture's address itself, wherever that leads."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") != "text":
                raise wrong("messages", "messages: only text is supported by a template; leave out everything else")


async def _forwarded(
    request: Request,
    path: str,
    body: _LlamaBody,
    *,
    needs: frozenset[Feature] = frozenset(),
    ignored: Sequence[str] = (),
) -> Response:
    fields = body.model_dump(exclude_none=True)
    for name in _OURS:
        if name in fields:
            raise wrong(name, f"{name} cannot be set by a client; leave it out")
    model = fields.pop("model", "")
    opening = passed(request, Generation(model=model, path=path, body=fields, needs=needs), ignored)
    return Reply(opening, STREAM if fields.get("stream") else None, ignoring_header(ignored))


@router.get("/health")
@router.get("/v1/health", include_in_schema=False)
async def health() -> JSONResponse:
    """The server answers; models are loaded when they are asked for."""
    return JSONResponse({"status": "ok"})


@router.get("/props", responses=ERRORS)
async def props(request: Request, model: Name | None = None) -> JSONResponse:
    """What is known of a model as it runs, or would run."""
    service = service_of(request)
    entry = await service.entry(model or "")
    loaded = service.pool.placements()
    placement = loaded[entry.name] if entry.name in loaded else await asyncio.to_thread(service.shelf.placement, entry)
    sees = placement.file.vision_encoder is not None and "vision" in placement.build.features
    return JSONResponse(
        {
            "default_generation_settings": {"n_ctx": placement.settings.context},
            "total_slots": placement.settings.slots,
            "model_alias": entry.name,
            "modalities": {"vision": sees, "audio": False},
            "build_info": f"trilithon {__version__}, {placement.build.engine} {placement.build.version}",
            "placement": placement.name,
            "is_loaded": entry.name in loaded,
        }
    )

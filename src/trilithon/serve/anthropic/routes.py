"""Anthropic's API: messages, and how many tokens they are."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from trilithon.errors import EngineError, TrilithonError
from trilithon.serve.anthropic.bodies import CountBody, MessageBody, message_asked
from trilithon.serve.anthropic.events import MessageWriter
from trilithon.serve.http.dialects import caller_of, error_body, service_of
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.keep_alive import EVENTS, PING, StreamForm
from trilithon.serve.http.openapi import ERRORS, STREAMED
from trilithon.serve.http.streaming import Outgoing, Reply
from trilithon.serve.http.typed_events import asked_of, events_of, read
from trilithon.serve.passthrough import event, headers_of, in_turn
from trilithon.serve.service import Answer
from trilithon.serve.validation import ignoring_header

__all__ = ["router"]

_PROMPT = ("messages", "tools", "chat_template_kwargs")

router = APIRouter(prefix="/v1/messages", tags=["Anthropic"], route_class=JsonRoute)


@router.post("", responses=STREAMED)
async def messages(request: Request, body: MessageBody) -> Response:
    """An answer as blocks: thoughts, text, uses of tools; streamed as events, or whole."""
    asked = message_asked(body.model_dump(exclude_none=True))
    generation = await asked_of(request, body.model, asked, **body.residence())
    if body.stream:
        generation = replace(generation, counted=_prompt_of(asked.chat))

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [generation]) as (answer, _):
            writer = MessageWriter(model=body.model, stops=_words(body.stop_sequences))
            thoughtless = asked.thinks and "thinking" not in answer.placement.file.capabilities
            headers = headers_of(answer, (*asked.ignored, "thinking") if thoughtless else asked.ignored)
            if body.stream:
                counted = _counted_events(answer, writer)
                yield Outgoing(body=counted, content_type=EVENTS, headers=headers)
            else:
                await read(answer, writer)
                yield Outgoing(body=json.dumps(writer.message, ensure_ascii=False).encode(), headers=headers)

    return Reply(opening, _STREAM if body.stream else None, ignoring_header(asked.ignored))


async def _counted_events(answer: Answer, writer: MessageWriter) -> AsyncIterator[bytes]:
    """The stream begins with the number of the prompt's tokens, which are counted while the engine evaluates them; how
    many came from its cache is known at the end."""
    with contextlib.suppress(TrilithonError):  # what is wrong with the engine, the answer itself says
        tokens = await answer.prompt_tokens()
        writer.message["usage"] = {"input_tokens": tokens, "output_tokens": 0}
    async for events in events_of(answer, writer):
        yield events


async def _prompt_tokens(request: Request, model: str, chat: Mapping[str, Any]) -> tuple[int, Answer]:
    """By the model's own template and tokenizer."""
    service, caller = service_of(request), caller_of(request)
    _, rendered = await service.forward(model, "/apply-template", _prompt_of(chat), caller)
    text = {"content": _field(rendered, "prompt"), "add_special": True, "parse_special": True}
    answer, tokens = await service.forward(model, "/tokenize", text, caller)
    return len(_field(tokens, "tokens")), answer


def _prompt_of(chat: Mapping[str, Any]) -> dict[str, Any]:
    return {name: chat[name] for name in _PROMPT if name in chat}


def _words(stops: str | list[str] | None) -> list[str]:
    return [stops] if isinstance(stops, str) else stops or []


def _broken(problem: ApiError) -> bytes:
    return event(error_body("/v1/messages", problem), "error")


_STREAM = StreamForm(broken=_broken, keep_alive=PING)


@router.post("/count_tokens", responses=ERRORS)
async def count_tokens(request: Request, body: CountBody) -> JSONResponse:
    """How many tokens the prompt would be, by the model's own template and tokenizer."""
    asked = message_asked(body.model_dump(exclude_none=True))
    tokens, answer = await _prompt_tokens(request, body.model, asked.chat)
    return JSONResponse({"input_tokens": tokens}, headers=headers_of(answer, asked.ignored))


def _field(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)[name]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine returned no {name}", status=502, cause="bad answer") from error

"""Anthropic's API: messages, and how many tokens they are."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from trilithon.errors import EngineError
from trilithon.serve.anthropic.bodies import CountBody, MessageBody, message_asked
from trilithon.serve.anthropic.events import MessageWriter
from trilithon.serve.http.dialects import caller_of, error_body, service_of
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute
from trilithon.serve.http.openapi import ERRORS, STREAMED
from trilithon.serve.http.streaming import EVENTS, Outgoing, Reply
from trilithon.serve.http.typed_events import asked_of, events_of, read
from trilithon.serve.passthrough import event, headers_of, in_turn

__all__ = ["router"]

_PROMPT = ("messages", "tools", "chat_template_kwargs")

router = APIRouter(prefix="/v1/messages", tags=["Anthropic"], route_class=JsonRoute)


@router.post("", responses=STREAMED)
async def messages(request: Request, body: MessageBody) -> Response:
    """An answer as blocks: thoughts, text, uses of tools; streamed as events, or whole."""
    asked = message_asked(body.model_dump(exclude_none=True))
    generation = await asked_of(request, body.model, asked)

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with in_turn(request, [generation]) as (answer, _):
            writer = MessageWriter(model=body.model, stops=_words(body.stop_sequences))
            thoughtless = asked.thinks and "thinking" not in answer.placement.file.capabilities
            headers = headers_of(answer, (*asked.ignored, "thinking") if thoughtless else asked.ignored)
            if body.stream:
                yield Outgoing(body=events_of(answer, writer), content_type=EVENTS, headers=headers)
            else:
                await read(answer, writer)
                yield Outgoing(body=json.dumps(writer.message, ensure_ascii=False).encode(), headers=headers)

    return Reply(opening, _broken)


def _words(stops: str | list[str] | None) -> list[str]:
    return [stops] if isinstance(stops, str) else stops or []


def _broken(problem: ApiError) -> bytes:
    return event(error_body("/v1/messages", problem), "error")


@router.post("/count_tokens", responses=ERRORS)
async def count_tokens(request: Request, body: CountBody) -> JSONResponse:
    """How many tokens the prompt would be, by the model's own template and tokenizer."""
    asked = message_asked(body.model_dump(exclude_none=True))
    service, caller = service_of(request), caller_of(request)
    said: dict[str, Any] = {
        name: asked.chat[name] for name in ("messages", "tools", "chat_template_kwargs") if name in asked.chat
    }
    _, rendered = await service.forward(body.model, "/apply-template", said, caller)
    prompt = _field(rendered, "prompt")
    text = {"content": prompt, "add_special": True, "parse_special": True}
    answer, tokens = await service.forward(body.model, "/tokenize", text, caller)
    return JSONResponse({"input_tokens": len(_field(tokens, "tokens"))}, headers=headers_of(answer, asked.ignored))


def _field(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)[name]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine returned no {name}", status=502, cause="bad answer") from error

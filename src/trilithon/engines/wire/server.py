"""The endpoints of the wire, once for all servers that are written in Python; an engine adds what only it can do."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Generic, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from trilithon.engines.wire.answers import ChatAnswer, CompletionAnswer, WireAnswer, embeddings_body, pieces_body
from trilithon.engines.wire.bodies import metrics_text
from trilithon.engines.wire.generation import GeneratedToken, GenerationEnd, GenerationRequest
from trilithon.engines.wire.http import EventStream, WireError, event, read_body, saved_name, until_closed
from trilithon.engines.wire.messages import TAINTED
from trilithon.engines.wire.requests import RequestReader
from trilithon.engines.wire.served_model import ServedModel, models_body, props_body, slots_body
from trilithon.engines.wire.slot import WireSlot
from trilithon.errors import RunError, TaintedAnswer, UserError

__all__ = ["Handler", "WireServer"]

R = TypeVar("R", bound=GenerationRequest)
Handler = Callable[[Request], Awaitable[Response]]


class WireServer(ABC, Generic[R]):
    """`folder` is where slots are saved; None where `no_folder` says why they are not."""

    no_folder = "slots cannot be saved: start with --slot-save-path"

    def __init__(
        self, model: ServedModel, reader: RequestReader[R], slots: Sequence[WireSlot[R]], folder: Path | None
    ) -> None:
        self._model = model
        self._reader = reader
        self._text = reader.text
        self._all_slots = slots
        self._folder = folder

    def app(self) -> Starlette:
        get: dict[str, Handler] = {
            "/health": self._health,
            "/props": self._props,
            "/slots": self._slots,
            "/metrics": self._metrics,
            "/v1/models": self._models,
        }
        post: dict[str, Handler] = {
            "/completion": self._completion,
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embeddings,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/apply-template": self._apply_template,
            "/slots/{slot:int}": self._slot_action,
        }
        routes = [
            Route(path, self._guarded(handler), methods=[method])
            for method, table in (("GET", get), ("POST", post))
            for path, handler in table.items()
        ]
        failures: dict[Any, Any] = dict.fromkeys((WireError, UserError, RunError), _failed)
        return Starlette(routes=routes, exception_handlers=failures | {HTTPException: _not_found})

    # -- what an engine adds

    def _guarded(self, handler: Handler) -> Handler:
        """Wraps every handler."""
        return handler

    def _check(self, request: R) -> None:
        """Raises WireError for a request that this engine refuses, before anything is sent."""

    def _slot_for(self, request: R) -> WireSlot[R]:
        return self._slot(max(request.slot, 0))

    async def _vocabulary(self) -> int:
        return self._text.vocabulary or 0

    @abstractmethod
    async def _embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """One unit vector for each input."""

    # -- what the server says about itself

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _props(self, _: Request) -> Response:
        return JSONResponse(props_body(self._model, len(self._all_slots)))

    async def _slots(self, _: Request) -> Response:
        return JSONResponse(slots_body(self._all_slots))

    async def _metrics(self, _: Request) -> Response:
        processing = sum(slot.processing for slot in self._all_slots)
        waiting = sum(slot.waiting for slot in self._all_slots)
        return PlainTextResponse(metrics_text(self._all_slots[0].totals, processing=processing, waiting=waiting))

    async def _models(self, _: Request) -> Response:
        return JSONResponse(models_body(self._model, await self._vocabulary()))

    # -- generation

    async def _completion(self, request: Request) -> Response:
        body = await read_body(request)
        generation = self._reader.completion(body)
        answer = CompletionAnswer(model=self._model, text=self._text, request=generation, body=body)
        return await self._answer(request, generation, answer)

    async def _chat(self, request: Request) -> Response:
        body = await read_body(request)
        generation = self._reader.chat(body)
        answer = ChatAnswer(model=self._model, text=self._text, request=generation, body=body)
        return await self._answer(request, generation, answer)

    async def _answer(self, request: Request, generation: R, answer: WireAnswer) -> Response:
        self._check(generation)
        slot = self._slot_for(generation)
        if answer.body.get("stream"):
            return EventStream(self._events(slot, generation, answer))
        whole = await until_closed(request.receive, self._whole(slot, generation, answer))
        # The client closed the connection; 499 is the status that other servers log for that.
        return JSONResponse(whole) if whole else Response(status_code=499)

    async def _events(self, slot: WireSlot[R], generation: R, answer: WireAnswer) -> AsyncGenerator[str]:
        try:
            async with aclosing(slot.generate(generation)) as steps:
                async for step in steps:
                    for body in answer.events(step):
                        yield event(body)
        except (WireError, UserError, RunError) as error:
            yield event(_wire_error(error).body)
            return
        if answer.last_event:
            yield answer.last_event

    async def _whole(self, slot: WireSlot[R], generation: R, answer: WireAnswer) -> dict[str, Any]:
        async with aclosing(slot.generate(generation)) as steps:
            async for step in steps:
                if isinstance(step, GenerationEnd):
                    return answer.whole(step)
                if isinstance(step, GeneratedToken):
                    answer.add(step)
        raise AssertionError("the last step is GenerationEnd")

    async def _embeddings(self, request: Request) -> Response:
        inputs = self._reader.inputs(await read_body(request))
        vectors = await until_closed(request.receive, self._embed(inputs))
        return JSONResponse(embeddings_body(self._model.name, inputs, vectors or []))

    # -- text

    async def _tokenize(self, request: Request) -> Response:
        body = await read_body(request)
        self._need_tokenizer()
        tokens = self._text.tokenize(str(body.get("content", "")), add_special=bool(body.get("add_special")))
        return JSONResponse({"tokens": pieces_body(tokens, self._text) if body.get("with_pieces") else tokens})

    async def _detokenize(self, request: Request) -> Response:
        tokens = (await read_body(request)).get("tokens", [])
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise WireError(400, '"tokens" must be a list of token ids')
        self._need_tokenizer()
        return JSONResponse({"content": self._text.detokenize(tokens)})

    def _need_tokenizer(self) -> None:
        if not self._text.has_tokenizer:
            raise WireError(501, f"there is no tokenizer; {self._text.note}", "not_supported_error")

    async def _apply_template(self, request: Request) -> Response:
        return JSONResponse({"prompt": self._reader.rendered(await read_body(request)).text})

    # -- slots

    def _slot(self, number: int) -> WireSlot[R]:
        if number >= len(self._all_slots):
            raise WireError(400, "Invalid slot ID")
        return self._all_slots[number]

    async def _slot_action(self, request: Request) -> Response:
        if self._folder is None:
            raise WireError(501, self.no_folder, "not_supported_error")
        number: int = request.path_params["slot"]
        slot, action, started_ns = self._slot(number), request.query_params.get("action"), time.monotonic_ns()
        if action == "erase":
            return JSONResponse({"id_slot": number, "n_erased": await slot.erase()})
        if action not in ("save", "restore"):
            raise WireError(400, "Invalid action")
        name = saved_name(await read_body(request))
        try:
            tokens, size_bytes = await (slot.save if action == "save" else slot.restore)(self._folder / name)
        except (OSError, ValueError) as error:
            raise WireError(400, f"Unable to {action} slot: {error}") from error
        names = ("n_saved", "n_written") if action == "save" else ("n_restored", "n_read")
        timings = {f"{action}_ms": (time.monotonic_ns() - started_ns) / 1e6}
        return JSONResponse(
            {"id_slot": number, "filename": name, names[0]: tokens, names[1]: size_bytes, "timings": timings}
        )


def _wire_error(error: WireError | UserError | RunError) -> WireError:
    if isinstance(error, WireError):
        return error
    if isinstance(error, TaintedAnswer):
        return WireError(500, str(error), TAINTED, line=error.line, advice=error.advice)
    return WireError(400, str(error)) if isinstance(error, UserError) else WireError(500, str(error), "server_error")


async def _failed(_: Request, error: WireError | UserError | RunError) -> Response:
    answer = _wire_error(error)
    return JSONResponse(answer.body, status_code=answer.status)


async def _not_found(_: Request, __: Exception) -> Response:
    return JSONResponse(WireError(404, "File Not Found", "not_found_error").body, status_code=404)

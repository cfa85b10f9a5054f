"""The RKLLM runtime behind the wire: llama-server's HTTP API over a Unix socket, for one model on the NPU.

    python -P -m trilithon.engines.rkllm.child.server --socket PATH --library LIBRKLLMRT --model FILE --options JSON

The options are the fields of `trilithon.engines.rkllm.options.LoadOptions`.
"""

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from trilithon.engines.rkllm.child import answers, requests
from trilithon.engines.rkllm.child.answering import GenerationEnd
from trilithon.engines.rkllm.child.binding import UnknownAbi
from trilithon.engines.rkllm.child.runtime import LoadFailed, RkllmRuntime, RuntimeFailed
from trilithon.engines.rkllm.child.slot import NothingToSave, RkllmSlot
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.child.vision import open_encoder
from trilithon.engines.rkllm.options import CONTEXT_STEP, LoadOptions
from trilithon.engines.wire.bodies import metrics_text
from trilithon.engines.wire.http import EventStream, WireError, event, read_body, saved_name, serve, until_closed
from trilithon.engines.wire.server import WireServer
from trilithon.errors import RunError, TrilithonError, UserError
from trilithon.models.files.rkllm import companion

__all__ = ["main"]

_Shape = answers.ChatShape | answers.CompletionShape

_NOT_LOADED = 3


class _RkllmWire(WireServer):
    """The endpoints."""

    def __init__(
        self, slot: RkllmSlot, about: answers.ServedModel, file: Path, options: LoadOptions, vision: requests.Vision
    ):
        self._slot = slot
        self._about = about
        self._file = file
        self._options = options
        self._vision = vision
        self._text = about.text

    def app(self) -> Starlette:
        handlers: dict[Any, Any] = {
            WireError: _tell,
            RuntimeFailed: _tell_failure,
            UserError: _tell_failure,
            RunError: _tell_failure,
            HTTPException: _not_found,
        }
        return Starlette(routes=self.routes(), exception_handlers=handlers)

    @property
    def _context(self) -> int:
        return self._slot.runtime.context

    @property
    def _vocabulary(self) -> int:
        return self._text.vocabulary or 0

    async def _props(self, _: Request) -> Response:
        return JSONResponse(answers.describe_props(self._about, self._slot))

    async def _slots(self, _: Request) -> Response:
        return JSONResponse(answers.describe_slots(self._slot))

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(
            metrics_text(self._slot.totals, processing=self._slot.processing, waiting=self._slot.waiting)
        )

    async def _models(self, _: Request) -> Response:
        vocabulary, size_bytes = await self._slot.vocabulary(), self._file.stat().st_size
        return JSONResponse(answers.describe_models(self._about, self._slot, vocabulary, size_bytes))

    async def _completion(self, request: Request) -> Response:
        body = await read_body(request)
        generate = requests.read_completion(body, context=self._context, vocabulary=self._vocabulary, text=self._text)
        return await self._answer(request, body, answers.CompletionShape(self._about, generate, body))

    async def _chat(self, request: Request) -> Response:
        body = await read_body(request)
        read = requests.read_chat(
            body, context=self._context, text=self._text, thinking=self._options.thinking, vision=self._vision
        )
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return await self._answer(request, body, answers.ChatShape(self._about, read.generate, body, name, read.tools))

    async def _answer(self, request: Request, body: dict[str, Any], shape: _Shape) -> Response:
        if shape.request.scored and not self._slot.runtime.abi.has_logits:
            raise WireError(
                400, "the RKLLM runtime gives no scores before 1.2.0; use a newer one", "not_supported_error"
            )
        if body.get("stream"):
            return EventStream(self._events(shape))
        whole = await until_closed(request.receive, self._whole(shape))
        # Nobody hears the answer to a closed connection; 499 is what others log for it.
        return JSONResponse(whole) if whole else Response(status_code=499)

    async def _events(self, shape: _Shape) -> AsyncGenerator[str]:
        try:
            async with aclosing(self._slot.generate(shape.request)) as steps:
                opened = False
                async for step in steps:
                    bodies = [] if opened else shape.opening()
                    opened = True
                    bodies += shape.closing(step) if isinstance(step, GenerationEnd) else shape.piece(step)
                    for body in bodies:
                        yield event(body)
        except (RuntimeFailed, UserError, RunError) as error:
            yield event(_failure(error).body)
            return
        if isinstance(shape, answers.ChatShape):
            yield "data: [DONE]\n\n"

    async def _whole(self, shape: _Shape) -> dict[str, Any]:
        async with aclosing(self._slot.generate(shape.request)) as steps:
            async for step in steps:
                if isinstance(step, GenerationEnd):
                    return shape.whole(step)
                shape.piece(step)
        raise AssertionError("an answer has an end")

    async def _embeddings(self, request: Request) -> Response:
        body = await read_body(request)
        inputs = requests.read_inputs(body, context=self._context, vocabulary=self._vocabulary, text=self._text)
        vectors = await until_closed(request.receive, self._slot.embed(inputs))
        return JSONResponse(answers.embeddings_body(self._about.model, inputs, vectors or []))

    async def _tokenize(self, request: Request) -> Response:
        body = await read_body(request)
        self._need_tokenizer()
        tokens = self._text.tokenize(str(body.get("content", "")), add_special=bool(body.get("add_special")))
        pieces = answers.pieces_of(tokens, self._text.detokenize) if body.get("with_pieces") else tokens
        return JSONResponse({"tokens": pieces})

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
        rendered = requests.chat_prompt(await read_body(request), text=self._text, thinking=self._options.thinking)
        return JSONResponse({"prompt": rendered.text})

    async def _slot_action(self, request: Request) -> Response:
        if not self._options.slots:
            raise WireError(501, "slots cannot be saved: start with the option slots", "not_supported_error")
        if request.path_params["slot"] != 0:
            raise WireError(400, "Invalid slot ID")
        action, started_ns = request.query_params.get("action"), time.monotonic_ns()
        if action == "erase":
            return JSONResponse({"id_slot": 0, "n_erased": await self._slot.erase()})
        if action not in ("save", "restore"):
            raise WireError(400, "Invalid action")
        name = saved_name(await read_body(request))
        verb, counts = ("saved", "written") if action == "save" else ("restored", "read")
        try:
            found = await (self._slot.save if action == "save" else self._slot.restore)(Path(self._options.slots, name))
        except (NothingToSave, OSError, ValueError) as error:
            raise WireError(400, f"Unable to {action} slot: {error}") from error
        return JSONResponse(
            {
                "id_slot": 0,
                "filename": name,
                f"n_{verb}": found[0],
                f"n_{counts}": found[1],
                "timings": {f"{action}_ms": (time.monotonic_ns() - started_ns) / 1e6},
            }
        )


async def _tell(_: Request, error: WireError) -> Response:
    return JSONResponse(error.body, status_code=error.status)


def _failure(error: RuntimeFailed | UserError | RunError) -> WireError:
    if isinstance(error, RuntimeFailed):
        return WireError(error.reason.status, error.reason.message, error.reason.kind)
    if isinstance(error, UserError):
        return WireError(400, str(error))
    return WireError(500, str(error), "server_error")


async def _tell_failure(request: Request, error: RuntimeFailed | UserError | RunError) -> Response:
    return await _tell(request, _failure(error))


async def _not_found(_: Request, __: Exception) -> Response:
    return JSONResponse(WireError(404, "File Not Found", "not_found_error").body, status_code=404)


def _ends(model: Path, text: ModelText) -> frozenset[int]:
    """The tokens that end an answer, by the model's own files; 1.3.0 takes a wrong one from models of older toolkits
    and never stops (rknn-llm#534). Empty where nothing says: then the runtime alone decides."""
    found: list[Any] = []
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        path = companion(model, name)
        try:
            values = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be used: {error}; fetch it again, or remove it") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} cannot be used: it holds no object; fetch it again, or remove it")
        ids, token = values.get("eos_token_id"), values.get("eos_token")
        found += ids if isinstance(ids, list) else [ids]
        word = token.get("content") if isinstance(token, dict) else token
        found.append(text.token(word) if isinstance(word, str) else None)
    return frozenset(token for token in found if type(token) is int)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trilithon.engines.rkllm.child.server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to serve on")
    parser.add_argument("--library", type=Path, required=True, help="librkllmrt.so")
    parser.add_argument("--model", type=Path, required=True, help="the .rkllm file")
    parser.add_argument("--options", default="{}", help="how to load it, as a JSON object")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, options: LoadOptions) -> None:
    text = ModelText.beside(arguments.model)
    if text.note:
        sys.stderr.write(f"note: {text.note}\n")
    ends = _ends(arguments.model, text)
    vision = open_encoder(arguments.model, options.encoder, options.chip, text)
    if options.encoder and vision[0] is None:
        sys.stderr.write(f"note: images cannot be taken: {vision[1]}\n")
    with RkllmRuntime.open(arguments.library, arguments.model, options) as runtime:
        about = answers.ServedModel(
            model=arguments.model.name.removesuffix(".rkllm"),
            build=f"rkllm-{runtime.version}",
            created=int(time.time()),
            text=text,
            vision=vision[0] is not None,
        )
        serve(
            _RkllmWire(RkllmSlot(runtime, text, ends), about, arguments.model, options, vision).app(), arguments.socket
        )


def _begin_anew(arguments: argparse.Namespace, options: LoadOptions, limit: int) -> None:
    """With the model's own context. In a new process image: a second rkllm_init can crash (rknn-llm#522)."""
    sys.stderr.write(f"note: the context is cut to {limit} tokens, for which the model was converted\n")
    sys.stderr.flush()
    words = [("--socket", arguments.socket), ("--library", arguments.library), ("--model", arguments.model)]
    flags = [str(word) for pair in words for word in pair]
    options = replace(options, context=limit // CONTEXT_STEP * CONTEXT_STEP)
    module = ["-P", "-m", "trilithon.engines.rkllm.child.server"]
    os.execv(sys.executable, [sys.executable, *module, *flags, "--options", options.json()])


def main(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    try:
        options = LoadOptions.parse(arguments.options)
        try:
            _run(arguments, options)
        except LoadFailed as error:
            if error.limit is not None and CONTEXT_STEP <= error.limit < options.context:
                _begin_anew(arguments, options, error.limit)
            raise
    except (LoadFailed, UnknownAbi, RuntimeFailed, OSError) as error:
        sys.stderr.write(f"rkllm: {error}\n")
        return _NOT_LOADED
    except TrilithonError as error:
        sys.stderr.write(f"rkllm: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

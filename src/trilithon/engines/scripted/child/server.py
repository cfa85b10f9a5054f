"""A child that speaks the whole wire without a model: llama-server's HTTP API over a Unix socket, by a script.

Start it as `python -m trilithon.engines.scripted.child.server --socket PATH --script JSON`; the script's words are
the fields of `trilithon.engines.scripted.engine.Script`.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from trilithon.engines.scripted.child import answers, requests
from trilithon.engines.scripted.child.model import BOS, VOCABULARY
from trilithon.engines.scripted.child.slot import Evaluated, Faulty, ScriptedEnd, ScriptedPiece
from trilithon.engines.scripted.child.slots import Slots
from trilithon.engines.scripted.engine import Script
from trilithon.engines.wire.bodies import metrics_text
from trilithon.engines.wire.http import EventStream, WireError, event, read_body, saved_name, serve, until_closed
from trilithon.engines.wire.server import Handler, WireServer
from trilithon.errors import UserError

__all__ = ["main"]

_Shape = answers.ChatShape | answers.CompletionShape

_PAGE_BYTES = resource.getpagesize()
_REFUSED_START_CODE = 3


class _ScriptedWire(WireServer):
    """The endpoints. `folder` is where slots are saved; None when that is not offered."""

    def __init__(self, script: Script, slots: Slots, model: str, folder: Path | None) -> None:
        self._script = script
        self._all_slots = slots
        self._model = model
        self._folder = folder
        self._created = int(time.time())
        self._ready_at = math.inf if script.hang_start else time.monotonic() + script.load

    def app(self) -> Starlette:
        return Starlette(routes=self.routes(), exception_handlers={WireError: _tell, HTTPException: _not_found})

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if time.monotonic() < self._ready_at:
                raise WireError(503, "Loading model", "unavailable_error")
            return await handler(request)

        return guarded

    async def _props(self, _: Request) -> Response:
        return JSONResponse(answers.describe_props(self._model, self._all_slots))

    async def _slots(self, _: Request) -> Response:
        return JSONResponse(answers.describe_slots(self._all_slots))

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(
            metrics_text(self._all_slots.totals, processing=self._all_slots.processing, waiting=self._all_slots.waiting)
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse(answers.describe_models(self._model, self._all_slots, self._created))

    async def _completion(self, request: Request) -> Response:
        body = await read_body(request)
        generate = requests.read_completion(body, context=self._all_slots.context)
        return await self._answer(request, body, answers.CompletionShape(self._model, generate, body))

    async def _chat(self, request: Request) -> Response:
        body = await read_body(request)
        generate = requests.read_chat(body, context=self._all_slots.context)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return await self._answer(request, body, answers.ChatShape(self._model, generate, body, name, int(time.time())))

    async def _answer(self, request: Request, body: dict[str, Any], shape: _Shape) -> Response:
        self._refuse_on_demand()
        if shape.request.slot >= 0:
            self._all_slots.numbered(shape.request.slot)  # refused before anything is sent
        if body.get("stream"):
            return EventStream(self._events(shape, progress=bool(body.get("return_progress"))))
        whole = await until_closed(request.receive, self._whole(shape))
        # Nobody hears the answer to a closed connection; 499 is what others log for it.
        return JSONResponse(whole) if whole else Response(status_code=499)

    async def _events(self, shape: _Shape, *, progress: bool) -> AsyncGenerator[str]:
        try:
            async with aclosing(self._all_slots.generate(shape.request)) as steps:
                async for step in steps:
                    for body in _bodies(shape, step, progress=progress):
                        yield event(body)
        except Faulty as error:
            yield event(WireError(500, str(error), "server_error").body)
            return
        if isinstance(shape, answers.ChatShape):
            yield "data: [DONE]\n\n"

    async def _whole(self, shape: _Shape) -> dict[str, Any]:
        pieces: list[ScriptedPiece] = []
        try:
            async with aclosing(self._all_slots.generate(shape.request)) as steps:
                async for step in steps:
                    if isinstance(step, ScriptedPiece):
                        pieces.append(step)
                    elif isinstance(step, ScriptedEnd):
                        return shape.whole(pieces, step)
        except Faulty as error:
            raise WireError(500, str(error), "server_error") from error
        raise AssertionError("an answer has an end")

    def _refuse_on_demand(self) -> None:
        if self._script.refuse_requests:
            raise WireError(500, self._script.refuse_requests, "server_error")

    async def _embeddings(self, request: Request) -> Response:
        body = await read_body(request)
        self._refuse_on_demand()
        inputs = requests.read_inputs(body, context=self._all_slots.context)
        await until_closed(request.receive, self._all_slots.evaluate(sum(map(len, inputs))))
        return JSONResponse(answers.embeddings_body(self._model, inputs))

    async def _tokenize(self, request: Request) -> Response:
        body = await read_body(request)
        tokens = [BOS] if body.get("add_special") else []
        tokens += VOCABULARY.tokenize(str(body.get("content", "")))
        return JSONResponse({"tokens": answers.pieces_of(tokens) if body.get("with_pieces") else tokens})

    async def _detokenize(self, request: Request) -> Response:
        tokens = (await read_body(request)).get("tokens", [])
        if not isinstance(tokens, list) or not all(type(one) is int and 0 <= one < len(VOCABULARY) for one in tokens):
            raise WireError(400, '"tokens" must be a list of token ids')
        return JSONResponse({"content": VOCABULARY.detokenize(tokens)})

    async def _apply_template(self, request: Request) -> Response:
        return JSONResponse({"prompt": requests.chat_prompt(await read_body(request))})

    async def _slot_action(self, request: Request) -> Response:
        if self._folder is None:
            raise WireError(501, "slots cannot be saved: start with --slot-save-path", "not_supported_error")
        number: int = request.path_params["slot"]
        slot = self._all_slots.numbered(number)
        action, started_ns = request.query_params.get("action"), time.monotonic_ns()
        if action == "erase":
            return JSONResponse({"id_slot": number, "n_erased": await slot.erase()})
        if action not in ("save", "restore"):
            raise WireError(400, "Invalid action")
        name = saved_name(await read_body(request))
        verb, counts = ("saved", "written") if action == "save" else ("restored", "read"), (0, 0)
        try:
            counts = await (slot.save if action == "save" else slot.restore)(self._folder / name)
        except (OSError, ValueError) as error:
            raise WireError(400, f"Unable to {action} slot: {error}") from error
        return JSONResponse(
            {
                "id_slot": number,
                "filename": name,
                f"n_{verb[0]}": counts[0],
                f"n_{verb[1]}": counts[1],
                "timings": {f"{action}_ms": (time.monotonic_ns() - started_ns) / 1e6},
            }
        )


def _bodies(
    shape: _Shape, step: Evaluated | ScriptedPiece | ScriptedEnd, *, progress: bool
) -> Iterator[dict[str, Any]]:
    match step:
        case Evaluated():
            if progress:
                yield shape.progress(step)
            if step.processed == step.total:
                yield from shape.opening()
        case ScriptedPiece():
            body = shape.piece(step)
            if body:
                yield body
        case ScriptedEnd():
            yield from shape.closing(step)


async def _tell(_: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return JSONResponse(error.body, status_code=error.status)


async def _not_found(_: Request, __: Exception) -> Response:
    return JSONResponse(WireError(404, "File Not Found", "not_found_error").body, status_code=404)


def _counted_start(path: Path) -> int:
    """How many starts there were, this one included."""
    with path.open("ab") as file:
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_size


def _script(text: str) -> Script:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise UserError(f"--script is not JSON: {error}") from error
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise UserError('--script must be an object of strings, for example {"decode": "60"}')
    script = Script.parse(options.items())
    if script.flaky is not None and _counted_start(Path(script.flaky_file)) > script.flaky:
        return script.without_faults()
    return script


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trilithon.engines.scripted.child.server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to serve on")
    parser.add_argument("--script", default="{}", help="the script's options as a JSON object of strings")
    parser.add_argument("--model", default="scripted", help="the name to give as the model's")
    parser.add_argument("--context", type=int, default=4096, help="context size in tokens")
    parser.add_argument("--batch", type=int, default=2048, help="tokens between two reports of progress")
    parser.add_argument("--slots", type=int, default=1, help="how many conversations it holds")
    parser.add_argument("--slot-save-path", type=Path, help="folder for saved slots")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    try:
        script = _script(arguments.script)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return UserError.exit_code
    if script.refuse_start:
        sys.stderr.write(f"scripted: {script.refuse_start}\n")
        return _REFUSED_START_CODE
    # A scripted crash should leave no core file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        ballast = bytearray(script.memory)
    except MemoryError:
        sys.stderr.write(f"scripted: out of memory: cannot allocate {script.memory} bytes\n")
        return 1
    ballast[::_PAGE_BYTES] = b"\1" * len(range(0, script.memory, _PAGE_BYTES))
    slots = Slots(script, count=arguments.slots, context=arguments.context, batch=arguments.batch)
    wire = _ScriptedWire(script, slots, os.fsencode(arguments.model).decode(errors="replace"), arguments.slot_save_path)
    try:
        serve(wire.app(), arguments.socket)
    except OSError as error:
        sys.stderr.write(f"scripted: cannot serve on {arguments.socket}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The scripted engine's server: llama-server's HTTP API over a Unix socket, with a script instead of a model.

Start it as `python -m trilithon.engines.scripted.child.server --socket PATH --script JSON`. The script is an object
with fields of `trilithon.engines.scripted.engine.Script`."""

import argparse
import itertools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from trilithon import __version__
from trilithon.engines.scripted.child.model import EMBEDDING_SIZE, VOCABULARY, embedding
from trilithon.engines.scripted.child.slot import ScriptedSlot, shared_length
from trilithon.engines.scripted.engine import Script
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.http import WireError, serve
from trilithon.engines.wire.requests import RenderedPrompt, RequestReader, chat_messages
from trilithon.engines.wire.served_model import ServedModel
from trilithon.engines.wire.server import Handler, WireServer
from trilithon.engines.wire.slot import WireSlot
from trilithon.errors import UserError

__all__ = ["main"]

IMAGE: Final = "<image>"
TEMPLATE: Final = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"


class ScriptedReader(RequestReader[GenerationRequest]):
    def __init__(self, context: int) -> None:
        super().__init__(VOCABULARY, context)

    def rendered(self, body: Mapping[str, Any]) -> RenderedPrompt:
        messages = [
            f"<|{message.get('role', 'user')}|>\n{_content(message.get('content'))}\n"
            for message in chat_messages(body)
        ]
        text = "".join(messages) + "<|assistant|>\n"
        return RenderedPrompt(text, tuple(self.text.tokenize(text, add_special=True)), reasoning_opened=False)

    def request(self, body: Mapping[str, Any], common: GenerationRequest) -> GenerationRequest:
        if common.tools:
            raise WireError(400, "the scripted engine calls no tools; leave out tools")
        return common


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part.get("text", "")) if part["type"] == "text" else IMAGE for part in content)


_PAGE_BYTES = resource.getpagesize()
_REFUSED_START_CODE = 3


class _ScriptedServer(WireServer[GenerationRequest]):
    """Refuses and delays as the script says, and chooses between its slots."""

    def __init__(self, script: Script, slots: Sequence[ScriptedSlot], model: str, folder: Path | None) -> None:
        context = slots[0].context
        served = ServedModel(
            name=model,
            engine="scripted",
            build=f"scripted-{__version__}",
            context=context,
            trained_context=context,
            quantization="scripted",
            media_marker=IMAGE,
            embedding_size=EMBEDDING_SIZE,
            vision=True,
            chat_template=TEMPLATE,
            bos="<bos>",
            eos="<eos>",
        )
        super().__init__(served, ScriptedReader(context), slots, folder)
        self._script = script
        self._scripted_slots = slots
        self._used = [0] * len(slots)
        self._clock = itertools.count(1)
        self._ready_at = math.inf if script.hang_start else time.monotonic() + script.load

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if time.monotonic() < self._ready_at:
                raise WireError(503, "Loading model", "unavailable_error")
            return await handler(request)

        return guarded

    def _check(self, request: GenerationRequest) -> None:
        self._refuse_on_demand()

    def _refuse_on_demand(self) -> None:
        if self._script.refuse_requests:
            raise WireError(500, self._script.refuse_requests, "server_error")

    def _slot_for(self, request: GenerationRequest) -> WireSlot[GenerationRequest]:
        return self._slot(request.slot) if request.slot >= 0 else self._best(request.prompt_tokens or ())

    def _best(self, prompt: Sequence[int]) -> ScriptedSlot:
        """The slot with the shortest queue; of those, the one with the longest matching prefix; then the one that was
        unused for longest."""

        def cost(number: int) -> tuple[int, int, int]:
            slot = self._scripted_slots[number]
            return slot.processing + slot.waiting, -shared_length(slot.tokens, prompt), self._used[number]

        best = min(range(len(self._scripted_slots)), key=cost)
        self._used[best] = next(self._clock)
        return self._scripted_slots[best]

    async def _embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        self._refuse_on_demand()
        await self._best(()).evaluate(sum(map(len, inputs)))
        return [embedding(tokens) for tokens in inputs]


def _counted_start(path: Path) -> int:
    """The number of starts, including this one."""
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
    parser.add_argument("--model", default="scripted", help="the name of the model")
    parser.add_argument("--context", type=int, default=4096, help="context size in tokens")
    parser.add_argument("--batch", type=int, default=2048, help="tokens between two reports of progress")
    parser.add_argument("--slots", type=int, default=1, help="number of KV caches")
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
    # A scripted crash should not write a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        ballast = bytearray(script.memory)
    except MemoryError:
        sys.stderr.write(f"scripted: out of memory: cannot allocate {script.memory} bytes\n")
        return 1
    ballast[::_PAGE_BYTES] = b"\1" * len(range(0, script.memory, _PAGE_BYTES))
    totals = Totals()
    slots = [
        ScriptedSlot(script, context=arguments.context, batch=arguments.batch, totals=totals)
        for _ in range(arguments.slots)
    ]
    model = os.fsencode(arguments.model).decode(errors="replace")
    try:
        serve(_ScriptedServer(script, slots, model, arguments.slot_save_path).app(), arguments.socket)
    except OSError as error:
        sys.stderr.write(f"scripted: cannot serve on {arguments.socket}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

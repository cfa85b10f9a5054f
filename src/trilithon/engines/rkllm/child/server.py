"""The server for the RKLLM runtime: llama-server's HTTP API over a Unix socket, for one model on the NPU.

    python -P -m trilithon.engines.rkllm.child.server --socket PATH --library LIBRKLLMRT --model FILE --options JSON

The options are the fields of `trilithon.engines.rkllm.options.LoadOptions`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilithon.engines.rkllm.child.answering import RkllmRequest
from trilithon.engines.rkllm.child.binding import UnknownAbi
from trilithon.engines.rkllm.child.requests import RkllmReader
from trilithon.engines.rkllm.child.runtime import LoadFailed, RkllmRuntime, RuntimeFailed
from trilithon.engines.rkllm.child.slot import RkllmSlot
from trilithon.engines.rkllm.child.template import IMAGE_TAG, ModelText
from trilithon.engines.rkllm.child.vision import open_encoder
from trilithon.engines.rkllm.options import CONTEXT_STEP, LoadOptions
from trilithon.engines.wire.http import WireError, serve
from trilithon.engines.wire.served_model import ServedModel
from trilithon.engines.wire.server import WireServer
from trilithon.errors import TrilithonError, UserError
from trilithon.models.files.rkllm import companion

__all__ = ["main"]

_NOT_LOADED = 3


class _RkllmServer(WireServer[RkllmRequest]):
    no_folder = "slots cannot be saved: start with the option slots"

    def __init__(self, served: ServedModel, reader: RkllmReader, slot: RkllmSlot, folder: Path | None):
        super().__init__(served, reader, [slot], folder)
        self._slot_of_model = slot

    def _check(self, request: RkllmRequest) -> None:
        if request.scored and not self._slot_of_model.runtime.abi.has_logits:
            message = "the RKLLM runtime gives no scores before 1.2.0; use a newer one"
            raise WireError(400, message, "not_supported_error")

    async def _vocabulary(self) -> int:
        return await self._slot_of_model.vocabulary()

    async def _embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._slot_of_model.embed(inputs)


def _ends(model: Path, text: ModelText) -> frozenset[int]:
    """The tokens that end an answer, from the model's files: 1.3.0 reads a wrong one from models of older toolkits and
    never ends (rknn-llm#534). Empty where no file has them: then the runtime decides."""
    tokens: list[Any] = []
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        path = companion(model, name)
        try:
            values = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be used: {error}; fetch it again, or remove it") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} cannot be used: it is not a JSON object; fetch it again, or remove it")
        ids, token = values.get("eos_token_id"), values.get("eos_token")
        tokens += ids if isinstance(ids, list) else [ids]
        word = token.get("content") if isinstance(token, dict) else token
        tokens.append(text.token(word) if isinstance(word, str) else None)
    return frozenset(token for token in tokens if type(token) is int)


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
        served = ServedModel(
            name=arguments.model.name.removesuffix(".rkllm"),
            engine="rkllm",
            build=f"rkllm-{runtime.version}",
            context=runtime.context,
            trained_context=int(runtime.facts.get("context", runtime.context)),
            quantization=runtime.facts.get("dtype", ""),
            media_marker=IMAGE_TAG,
            size_bytes=arguments.model.stat().st_size,
            vision=vision[0] is not None,
            tools=text.has_template,
            more={"abi": runtime.abi.name, "note": text.note, **runtime.facts},
        )
        reader = RkllmReader(text, runtime.context, thinking=options.thinking, vision=vision)
        folder = Path(options.slots) if options.slots else None
        server = _RkllmServer(served, reader, RkllmSlot(runtime, text, ends), folder)
        serve(server.app(), arguments.socket)


def _start_again(arguments: argparse.Namespace, options: LoadOptions, limit: int) -> None:
    """With the model's context, in a new process image: a second rkllm_init can crash (rknn-llm#522)."""
    sys.stderr.write(f"note: the context is cut to {limit} tokens, for which the model was converted\n")
    sys.stderr.flush()
    pairs = [("--socket", arguments.socket), ("--library", arguments.library), ("--model", arguments.model)]
    flags = [str(word) for pair in pairs for word in pair]
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
                _start_again(arguments, options, error.limit)
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

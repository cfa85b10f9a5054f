"""The server over the library of the package ik-llama-cpp-python: llama-server's HTTP API over a Unix socket.

    python -P -m trilithon.engines.ik_llamacpp.child.server --socket PATH --model FILE --options JSON

The options are the fields of `trilithon.engines.ik_llamacpp.library_options.LibraryOptions`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trilithon.engines.ik_llamacpp.child.library import IkModel, NotLoaded
from trilithon.engines.ik_llamacpp.child.requests import IkReader, IkRequest, IkText
from trilithon.engines.ik_llamacpp.child.slot import IkSlot
from trilithon.engines.ik_llamacpp.library_options import LibraryOptions
from trilithon.engines.wire.http import WireError, serve
from trilithon.engines.wire.sampling_fields import UNSUPPORTED
from trilithon.engines.wire.served_model import ServedModel
from trilithon.engines.wire.server import WireServer
from trilithon.errors import TrilithonError

__all__ = ["main"]

_NOT_LOADED = 3


class _IkServer(WireServer[IkRequest]):
    no_folder = "the library alone saves no slots; run: trilithon engines build --engine ik"

    async def _embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        raise WireError(501, "ik_llama.cpp's library makes no vectors here; use llama.cpp/cpu", UNSUPPORTED)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trilithon.engines.ik_llamacpp.child.server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to serve on")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--options", required=True, help="how to load it, as a JSON object")
    arguments = parser.parse_args(argv)
    try:
        options = LibraryOptions.parse(arguments.options)
        model = IkModel(arguments.model, options)
        text = IkText(model, arguments.model, options.template)
    except (NotLoaded, TrilithonError) as error:
        sys.stderr.write(f"ik_llama.cpp: {error}\n")
        return _NOT_LOADED
    served = ServedModel(
        name=arguments.model.name.removesuffix(".gguf"),
        engine="ik_llama.cpp",
        build="library",
        context=model.context,
        trained_context=model.trained_context,
        quantization="",
        media_marker="",
        size_bytes=arguments.model.stat().st_size,
        tools=True,
        chat_template=text.chat_template,
        bos=text.bos,
        eos=text.eos,
    )
    serve(_IkServer(served, IkReader(text, model.context), [IkSlot(model)], None).app(), arguments.socket)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

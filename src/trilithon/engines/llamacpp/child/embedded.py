"""The llama.cpp server of the xllamacpp wheel, as a child process.

Start it as `python -m trilithon.engines.llamacpp.child.embedded JSON`. With `--system-info` it only prints for which
instructions it was compiled.

The JSON object maps names of xllamacpp's CommonParams (dots descend: "cpuparams.n_threads") to values; "socket" is
the Unix socket to serve on. All output goes to stderr, as with llama-server."""

import json
import signal
import sys
from importlib import import_module
from typing import Any

__all__ = ["main"]

_ENUMERATIONS = {
    "flash_attn_type": "llama_flash_attn_type",
    "cache_type_k": "ggml_type",
    "cache_type_v": "ggml_type",
    "pooling_type": "llama_pooling_type",
}


def main(argument: str) -> int:
    xllamacpp: Any = import_module("xllamacpp")  # 100 MB of native code, which only this process loads

    if argument == "--system-info":
        print(xllamacpp.get_system_info())  # noqa: T201
        return 0
    values: dict[str, Any] = json.loads(argument)
    parameters = xllamacpp.CommonParams()
    parameters.hostnames = [values.pop("socket")]
    for path, value in values.items():
        _assign(xllamacpp, parameters, path, value)
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    while server:  # its threads serve; SIGTERM ends the process by default
        signal.pause()
    return 0


def _assign(module: Any, parameters: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    holder = parameters
    for parent in parents:
        holder = getattr(holder, parent, None)
    if not hasattr(holder, name):
        raise SystemExit(f"error: this xllamacpp has no parameter {path}")
    try:
        if name in _ENUMERATIONS:
            value = getattr(getattr(module, _ENUMERATIONS[name]), value)
        if name == "types":
            value = [getattr(module.common_speculative_type, value)]
        if name == "lora_adapters":
            value = [module.CommonAdapterLoraInfo(path, 1.0) for path in value]
        setattr(holder, name, value)
    except (AttributeError, TypeError, OverflowError) as error:
        raise SystemExit(f"error: this xllamacpp does not accept {value!r} for {path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

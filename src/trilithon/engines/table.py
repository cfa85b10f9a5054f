"""Engine name → "module:Class". A new engine is one module and one line here."""

from importlib import import_module

from trilithon.engines.base import Engine
from trilithon.errors import PlacementError
from trilithon.settings import Configuration

__all__ = ["ENGINES", "engine", "engines"]

ENGINES = {
    "llama.cpp": "trilithon.engines.llamacpp.engine:LlamaCpp",
    "rk-llama.cpp": "trilithon.engines.rk_llamacpp.engine:RkLlamaCpp",
    "rkllm": "trilithon.engines.rkllm.engine:Rkllm",
    "scripted": "trilithon.engines.scripted.engine:ScriptedEngine",
}


def engine(name: str, configuration: Configuration) -> Engine:
    """The engine called `name`. Raises PlacementError for an unknown one."""
    try:
        module, _, attribute = ENGINES[name].partition(":")
    except KeyError:
        raise PlacementError(f"unknown engine {name}; there are {', '.join(ENGINES)}") from None
    made: Engine = getattr(import_module(module), attribute)(configuration)
    return made


def engines(configuration: Configuration) -> list[Engine]:
    return [engine(name, configuration) for name in ENGINES]

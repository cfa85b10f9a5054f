"""Ollama's environment variables as defaults of `trilithon serve`: who comes from Ollama has them set already.

Names and forms as in Ollama's envconfig/config.go (v0.33). An option of the command line goes before."""

import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from trilithon.errors import UserError

__all__ = ["ollama_defaults"]

_OPTIONS = {
    "OLLAMA_KEEP_ALIVE": ("keep_alive",),
    "OLLAMA_CONTEXT_LENGTH": ("context",),
    "OLLAMA_NUM_PARALLEL": ("parallel",),
    "OLLAMA_ORIGINS": ("cors",),
    "OLLAMA_HOST": ("host", "port"),
}
_LEAST_CONTEXT, _MOST_PARALLEL = 256, 64


def ollama_defaults(
    environment: Mapping[str, str], is_named: Callable[[str], bool]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Values of options, and a text for each variable that is used. `is_named` tells options of the command line.

    Raises UserError for a value that does not fit."""
    values: dict[str, Any] = {}
    used = []
    for variable, options in _OPTIONS.items():
        text = environment.get(variable, "").strip().strip("\"'")
        free = [option for option in options if not is_named(option)]
        if not text or not free:
            continue
        read = {option: value for option, value in _READ[variable](variable, text).items() if option in free}
        if read:
            values |= read
            shown = ", ".join(f"--{option.replace('_', '-')}" for option in read)
            used.append(f"{variable}={text} as {shown}")
    return values, tuple(used)


def _keep_alive(variable: str, text: str) -> dict[str, Any]:
    from trilithon.serve.http.errors import ApiError
    from trilithon.serve.ollama.options import keep_alive_seconds

    try:
        seconds = keep_alive_seconds(text)
    except ApiError as error:
        raise UserError(
            "{variable}={text} is not a duration; write 300, 5m, 1h30m or -1, or unset it", variable=variable, text=text
        ) from error
    assert seconds is not None
    return {"keep_alive": "-1" if seconds == math.inf else f"{seconds:g}s"}


def _number(variable: str, text: str, least: int, most: float) -> int | None:
    """None for 0, which leaves the choice to the server."""
    if not text.isascii() or not text.isdecimal() or (int(text) and not least <= int(text) <= most):
        bounds = f"{least} to {most}" if most < math.inf else f"{least} or more"
        raise UserError(
            "{variable}={text} does not fit: write {bounds}, or unset it", variable=variable, text=text, bounds=bounds
        )
    return int(text) or None


def _context(variable: str, text: str) -> dict[str, Any]:
    context = _number(variable, text, _LEAST_CONTEXT, math.inf)
    return {} if context is None else {"context": context}


def _parallel(variable: str, text: str) -> dict[str, Any]:
    slots = _number(variable, text, 1, _MOST_PARALLEL)
    return {} if slots is None else {"parallel": slots}


def _origins(variable: str, text: str) -> dict[str, Any]:
    return {"cors": tuple(origin.strip() for origin in text.split(",") if origin.strip())}


def _host(variable: str, text: str) -> dict[str, Any]:
    """HOST, HOST:PORT, :PORT or a URL. Without a port it is Trilithon's own."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        port = parts.port
    except ValueError as error:
        raise UserError(
            "{variable}={text} is not an address; write HOST:PORT, or unset it", variable=variable, text=text
        ) from error
    return ({"host": parts.hostname} if parts.hostname else {}) | ({} if port is None else {"port": port})


_READ: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "OLLAMA_KEEP_ALIVE": _keep_alive,
    "OLLAMA_CONTEXT_LENGTH": _context,
    "OLLAMA_NUM_PARALLEL": _parallel,
    "OLLAMA_ORIGINS": _origins,
    "OLLAMA_HOST": _host,
}

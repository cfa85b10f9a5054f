"""What goes wrong between us and an engine's server, in Trilithon's words."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import h11

from trilithon.errors import EngineError, EngineTimeout, RunError

__all__ = ["Disconnected", "hung", "json_object", "refusal", "translated", "understood"]


class Disconnected(RunError):
    """The connection broke or was refused: the child is gone or going. The runner finds out why."""

    kind = "disconnected"


@contextlib.contextmanager
def translated(limit_seconds: float) -> Iterator[None]:
    """Foreign errors in Trilithon's words."""
    try:
        yield
    except TimeoutError as error:
        raise hung(str(error) or f"{limit_seconds:g}") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise Disconnected(f"the connection broke: {str(error) or type(error).__name__}") from error


def hung(seconds: str) -> EngineTimeout:
    return EngineTimeout(
        f"no sign of life for {seconds} s",
        cause="hang",
        advice="allow longer with TRILITHON_HANG_SECONDS if the machine is just slow",
    )


@contextlib.contextmanager
def understood(what: str, answer: Mapping[str, Any]) -> Iterator[None]:
    """An answer that lacks what it must have, or has it in another shape, is an engine's error and not ours."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"the engine answered {what} in another form than llama-server's: {str(answer)[:80]}",
            status=502,
            cause="bad answer",
        ) from error


def json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise EngineError(f"the engine answered no JSON: {content[:80]!r}", status=502, cause="bad answer") from error
    if not isinstance(value, dict):
        raise EngineError(f"the engine answered no JSON object: {content[:80]!r}", status=502, cause="bad answer")
    return value


def refusal(status: int, body: bytes) -> EngineError:
    try:
        error = json.loads(body)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) else status  # elsewhere it is a word, or null
    except (ValueError, AttributeError):
        text = body.decode(errors="replace").strip() or "no reason given"
    return EngineError(f"the engine refused ({status}): {' '.join(text.split())[:500]}", status=status, cause="refused")

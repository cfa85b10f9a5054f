"""Errors of the connection to an engine's server, and of its answers, as Trilithon's errors."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import h11

from trilithon.engines.wire.messages import TAINTED
from trilithon.errors import ContextExceeded, EngineError, EngineTimeout, RunError, TaintedAnswer

__all__ = ["Disconnected", "engine_error", "engine_timeout", "json_object", "translated", "well_formed"]

# llama-server's words, of several versions (tools/server/server-context.cpp of llama.cpp). A text to be pooled must fit
# into one batch, and its error has status 500.
_TOO_LONG = re.compile(
    r"(?:(?:request|input) \((?P<tokens>\d+) tokens\) )?"
    r"(?:exceeds the available context size|(?:is )?too large to process|is larger than the max context size)"
    r"(?:.*?\((?:current batch size: )?(?P<context>\d+)(?: tokens)?\))?"
)


class Disconnected(RunError):
    """The connection broke or was refused, because the child has ended or is ending."""

    kind = "disconnected"


@contextlib.contextmanager
def translated(limit_seconds: float) -> Iterator[None]:
    """Raise errors of the connection as EngineTimeout and Disconnected."""
    try:
        yield
    except TimeoutError as error:
        raise engine_timeout(str(error) or f"{limit_seconds:g}") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise Disconnected(f"the connection broke: {str(error) or type(error).__name__}") from error


def engine_timeout(seconds: str) -> EngineTimeout:
    return EngineTimeout(
        f"no response for {seconds} s",
        cause="hang",
        advice="allow longer with TRILITHON_HANG_SECONDS if the machine is only slow",
    )


@contextlib.contextmanager
def well_formed(what: str, answer: Mapping[str, Any]) -> Iterator[None]:
    """Raise EngineError when the block finds that `answer` lacks a field, or has another shape."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"the engine's answer to {what} has another form than llama-server's: {str(answer)[:80]}",
            status=502,
            cause=f"bad answer to {what}",
        ) from error


def json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise EngineError(
            f"the engine's answer is not JSON: {content[:80]!r}", status=502, cause="bad answer"
        ) from error
    if not isinstance(value, dict):
        raise EngineError(f"the engine's answer is not a JSON object: {content[:80]!r}", status=502, cause="bad answer")
    return value


def engine_error(status: int, body: bytes, path: str = "") -> EngineError:
    """The error in an answer. `path` is the request's; leave it out for an error within a stream."""
    missing = f"the engine has no {path.partition('?')[0]}" if path and status == HTTPStatus.NOT_FOUND else ""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
        fields = error if isinstance(error, dict) else {}
        if fields.get("type") == TAINTED:
            return TaintedAnswer(str(fields.get("line", text)), str(fields.get("advice", "")))
        code = fields.get("code")
        status = code if isinstance(code, int) else status  # some engines send a string, or null
    except (ValueError, AttributeError):
        text, fields = body.decode(errors="replace").strip() or "no reason given", {}
    reason = f"{missing or 'the engine refused'} ({status}): {' '.join(text.split())[:500]}"
    words = _TOO_LONG.search(text)
    if words or fields.get("type") == "exceed_context_size_error":
        counts = words.groupdict() if words else {}
        return ContextExceeded(
            reason,
            prompt_tokens=_count(fields.get("n_prompt_tokens"), counts.get("tokens")),
            context=_count(fields.get("n_ctx"), counts.get("context")),
        )
    return EngineError(reason, status=status, cause=missing or "refused")


def _count(field: object, words: str | None) -> int | None:
    return field if type(field) is int else int(words) if words else None

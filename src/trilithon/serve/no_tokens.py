"""A limit of no tokens: the prompt is evaluated, and stays in the cache for the next request, as llama-server documents
for `n_predict` 0 and Anthropic for `max_tokens` 0.

Engines generate one token all the same; it is left out of the answer here."""

import json
from collections.abc import Mapping
from typing import Any

from trilithon.errors import EngineError

__all__ = ["one_token", "without_token"]

_LIMITS = ("max_tokens", "n_predict")
_OF_TOKEN = frozenset({"content", "reasoning_content", "tool_calls", "tokens", "logprobs", "completion_probabilities"})
_EMPTY: Mapping[str, Any] = {"content": "", "tokens": [], "completion_tokens": 0, "tokens_predicted": 0}
_ENDS: Mapping[str, Any] = {"finish_reason": "length", "stop_type": "limit", "predicted_n": 0, "predicted_ms": 0.0}


def one_token(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the engine gets for a request for no tokens; None for other requests."""
    limit = next((body[name] for name in _LIMITS if body.get(name) is not None), None)
    if type(limit) is not int or limit != 0:
        return None
    return {name: value for name, value in body.items() if name not in _LIMITS} | {"max_tokens": 1, "n_predict": 1}


def without_token(content: bytes) -> bytes:
    """An answer of an engine, whole or as server-sent events, without the one token. Raises EngineError."""
    lines = content.split(b"\n") if content.startswith(b"data:") else [b"data: " + content]
    emptied = [_line(line) for line in lines]
    return b"\n".join(emptied) if content.startswith(b"data:") else emptied[0].removeprefix(b"data: ")


def _line(line: bytes) -> bytes:
    value = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or value == b"[DONE]":
        return line
    try:
        return b"data: " + json.dumps(_emptied(json.loads(value)), ensure_ascii=False).encode()
    except ValueError as error:
        raise EngineError(f"the engine's answer is not JSON: {value[:80]!r}", status=502, cause="bad answer") from error


def _emptied(value: Any) -> Any:
    if isinstance(value, list):
        return [_emptied(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    emptied: dict[str, Any] = {}
    for name, entry in value.items():
        if name in _OF_TOKEN and entry:
            if name in _EMPTY:
                emptied[name] = _EMPTY[name]
        elif entry is not None and name in (*_EMPTY, *_ENDS):
            emptied[name] = (_EMPTY | _ENDS)[name]  # type: ignore[operator]
        else:
            emptied[name] = _emptied(entry)
    if "total_tokens" in emptied:
        emptied["total_tokens"] = emptied.get("prompt_tokens", 0)
    return emptied

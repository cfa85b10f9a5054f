"""What comes back, in Ollama's form: a line for each piece, and a last one with counts and durations. Pure functions.

Durations are nanoseconds. `prompt_eval_count` counts what was evaluated in `prompt_eval_duration` and nothing else;
Ollama's own adds the tokens taken from the cache, so that a warm prefix looks faster than any prefill is. Those stand
apart here, in `prompt_cached_count`."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import End, Piece
from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.keep_alive import BLANK, NDJSON, StreamForm

__all__ = ["STREAM", "LineWriter", "Wrapped", "chat_wrapped", "durations", "generate_wrapped", "line", "timestamp"]

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000

Wrapped = Callable[[str, str, Sequence[Mapping[str, Any]]], dict[str, Any]]
"""Text, thoughts and tool calls as the route has them."""


def timestamp(at_ns: int | None = None) -> str:
    """Wall-clock time (nanoseconds since 1970; now) in RFC 3339, with all its nanoseconds."""
    seconds, rest = divmod(time.time_ns() if at_ns is None else at_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def line(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _broken(problem: ApiError) -> bytes:
    return line(error_body("/api/", problem))


STREAM = StreamForm(broken=_broken, content_type=NDJSON, keep_alive=BLANK, boundary=b"\n")


def generate_wrapped(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """No tools can be offered there, so that there are no calls."""
    return {"response": text} | ({"thinking": thinking} if thinking else {})


def chat_wrapped(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = list(calls)
    return {"message": message}


def durations(timings: Timings | None, *, total_ns: int, load_seconds: float) -> dict[str, int]:
    """What is 0 or unknown is left out, as Ollama does; but for the counts that a client divides by a duration."""
    fields = {"total_duration": total_ns, "load_duration": round(load_seconds * _NS_PER_S)}
    if timings is not None:
        fields |= {
            "prompt_eval_count": timings.prompt_n,
            "prompt_cached_count": timings.cache_n,
            "prompt_eval_duration": round(timings.prompt_ms * _NS_PER_MS),
            "eval_count": timings.predicted_n,
            "eval_duration": round(timings.predicted_ms * _NS_PER_MS),
        }
    kept = ("prompt_eval_count", "eval_count")
    return {name: value for name, value in fields.items() if value > 0 or (value == 0 and name in kept)}


@dataclass(slots=True)
class _PendingCall:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class LineWriter:
    """The answers to one request. `top_logprobs` is how many alternatives the client wants with each token, None for
    no log-probabilities."""

    model: str
    wrapped: Wrapped
    top_logprobs: int | None = None
    _calls: dict[int, _PendingCall] = field(default_factory=dict)
    _told: int = 0

    def piece(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Bodies of lines: of a tool call only when it is whole."""
        if piece.text or piece.reasoning or (piece.logprobs and self.top_logprobs is not None):
            yield self._body(piece.text, piece.reasoning, (), piece.logprobs)
        for delta in piece.tool_calls:
            number = int(delta.get("index") or 0)
            if number not in self._calls and self._calls:
                yield from self._whole_calls()
            call, function = self._calls.setdefault(number, _PendingCall()), delta.get("function") or {}
            call.id = delta.get("id") or call.id
            call.name = function.get("name") or call.name
            call.arguments += function.get("arguments") or ""

    def end(self, end: End, figures: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What was left, and the last line."""
        yield from self._whole_calls()
        reason = "length" if end.reason == "length" else "stop"
        yield self._body("", "", (), ()) | {"done": True, "done_reason": reason} | dict(figures)

    def empty(self, reason: str, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request that asked nothing: the model was loaded, or unloaded."""
        return self._body("", "", (), ()) | {"done": True, "done_reason": reason} | dict(figures or {})

    def gathered(self, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All lines of a stream as one answer."""
        texts, thoughts, calls, logprobs = [], [], [], []
        for body in bodies:
            told = body.get("message", body)
            texts.append(told.get("content", body.get("response", "")))
            thoughts.append(told.get("thinking", ""))
            calls += told.get("tool_calls", ())
            logprobs += body.get("logprobs", ())
        whole = dict(bodies[-1]) | self.wrapped("".join(texts), "".join(thoughts), calls)
        return whole | ({"logprobs": logprobs} if logprobs else {})

    def _whole_calls(self) -> Iterator[dict[str, Any]]:
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            arguments = _arguments(call.arguments)
            if arguments is None:  # cut off by the limit of tokens: what the model wrote is not lost
                yield self._body(f"{call.name} {call.arguments}", "", (), ())
                continue
            function: dict[str, Any] = {"index": self._told, "name": call.name, "arguments": arguments}
            yield self._body("", "", [{"id": call.id or f"call_{self._told}", "function": function}], ())
            self._told += 1

    def _body(
        self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]], logprobs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "created_at": timestamp()}
        body |= self.wrapped(text, thinking, calls) | {"done": False}
        if logprobs and self.top_logprobs is not None:
            body["logprobs"] = [_logprob(entry, self.top_logprobs) for entry in logprobs]
        return body


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _logprob(entry: Mapping[str, Any], top: int) -> dict[str, Any]:
    token = _token(entry)
    if top:
        token["top_logprobs"] = [_token(candidate) for candidate in (entry.get("top_logprobs") or ())[:top]]
    return token


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    text = str(entry.get("token", ""))
    octets = entry.get("bytes")
    logprob = entry.get("logprob")  # null where it is minus infinity, which JSON has no word for
    return {
        "token": text,
        "logprob": -9999.0 if logprob is None else logprob,
        "bytes": list(text.encode()) if octets is None else octets,
    }

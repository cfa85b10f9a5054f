"""The one internal request, and what comes back for it: every dialect is a pair of pure converters to and from these.

The body is llama-server's own JSON, because that is what every engine takes; where a client speaks that dialect
already, its bytes pass through. Field names of the stream follow llama-server (tools/server/README.md of llama.cpp)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilithon.engines.base import Feature
from trilithon.engines.wire.messages import Timings
from trilithon.errors import EngineError

__all__ = ["AnswerReader", "End", "Generation", "Piece"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """`model` is as the client named it; `path` and `body` are what the engine gets (without "model"). `needs` are the
    features without which the body cannot be honoured. `keep_alive_seconds` is None for the server's own, infinite
    for ever; `context` is the least number of tokens that the client asked for, None for the server's own.
    `placement`, as placements are spelled, is where it has to run; empty for where the model runs best. `custom_tools`
    are the names of tools whose calls the client reads in OpenAI's form of custom calls. `counted` is a chat whose
    tokens the engine counts meanwhile, for `Answer.prompt_tokens`."""

    model: str
    path: str
    body: Mapping[str, Any]
    needs: frozenset[Feature] = field(default=frozenset())
    keep_alive_seconds: float | None = None
    context: int | None = None
    placement: str = ""
    custom_tools: frozenset[str] = field(default=frozenset())
    counted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of the answer. `tool_calls` are OpenAI's deltas (index, id, function name, fragments of arguments),
    `logprobs` the entries of OpenAI's `logprobs.content`."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """`reason` is OpenAI's: "stop", "length", "tool_calls"."""

    reason: str
    timings: Timings | None = None
    stop_word: str = ""


class AnswerReader:
    """From the bytes of a streamed answer of `/completion` or `/v1/chat/completions` to pieces, `End` last and once."""

    def __init__(self) -> None:
        self._rest = b""
        self._reason = ""
        self._stop_word = ""
        self._timings: Timings | None = None

    def feed(self, chunk: bytes) -> list[Piece]:
        """Raises Refused for an error that the engine sends in the middle."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        pieces: list[Piece] = []
        for line in lines:
            name, _, value = line.strip().partition(b":")
            if name in (b"data", b"error") and (value := value.strip()) and value != b"[DONE]":
                pieces += self._message(_object(value))
        return pieces

    def end(self) -> End:
        """Raises Refused when the answer broke off."""
        if not self._reason:
            raise EngineError("the answer was interrupted", status=502, cause="broken off")
        return End(reason=self._reason, timings=self._timings, stop_word=self._stop_word)

    def _message(self, message: Mapping[str, Any]) -> list[Piece]:
        if "error" in message or ("message" in message and "code" in message):
            error = message.get("error", message)
            text = error.get("message", error) if isinstance(error, dict) else error
            raise EngineError(f"the engine failed: {text}", status=502, cause="error during the answer")
        if message.get("timings"):
            self._timings = Timings.parse(message["timings"])
        if "choices" not in message:
            return self._completion(message)
        # llama-server's word on how a chat ended, where the request says "verbose".
        self._stop_word = str((message.get("__verbose") or {}).get("stopping_word") or self._stop_word)
        pieces = []
        for choice in message["choices"] or []:
            self._reason = choice.get("finish_reason") or self._reason
            piece = _delta(choice)
            if piece is not None:
                pieces.append(piece)
        return pieces

    def _completion(self, message: Mapping[str, Any]) -> list[Piece]:
        if message.get("stop") is True:
            self._reason = "length" if message.get("stop_type") == "limit" else "stop"
            self._stop_word = str(message.get("stopping_word") or "")
        text = str(message.get("content") or "")
        logprobs = message.get("completion_probabilities") or ()
        return [Piece(text=text, logprobs=logprobs)] if text or logprobs else []


def _delta(choice: Mapping[str, Any]) -> Piece | None:
    delta = choice.get("delta") or {}
    logprobs = (choice.get("logprobs") or {}).get("content") or ()
    text, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
    calls = delta.get("tool_calls") or ()
    if not (text or reasoning or calls or logprobs):
        return None
    return Piece(
        text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs, choice=int(choice.get("index") or 0)
    )


def _object(value: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise EngineError(f"the engine's answer is not JSON: {value[:80]!r}", status=502, cause="bad answer") from error
    if not isinstance(parsed, dict):
        raise EngineError(f"the engine's answer is not a JSON object: {value[:80]!r}", status=502, cause="bad answer")
    return parsed

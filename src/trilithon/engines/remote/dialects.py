"""Servers that take text, spoken to as if they were llama-server: Ollama's API, which RKLLAMA has too, and OpenAI's.

The fields are those of docs/api.md of Ollama and of OpenAI's reference of chat and text completions."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilithon.engines.remote.asking import Api
from trilithon.engines.wire.dialect import Ask, Dialect, Translation
from trilithon.engines.wire.messages import Completion
from trilithon.engines.wire.text_stream import ReasoningSplit, TextPiece

__all__ = ["dialect_of"]


_MOST = 1e18  # of a count, and of nanoseconds: 30 years


def dialect_of(api: Api, model: str, context: int | None) -> Dialect:
    """`context` in tokens is asked for where it is set, and where the API has a field for it."""
    if api == "llama-server":
        return _LlamaServer(model)
    return _OpenAi(model) if api == "OpenAI API" else _Ollama(model, context)


@dataclass(frozen=True, slots=True)
class _LlamaServer:
    """It speaks the wire; one with several models is told which."""

    model: str

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        return Translation(path, None if body is None else {**body, "model": self.model})


@dataclass(frozen=True, slots=True)
class _Ollama:
    model: str
    context: int | None

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        if body is None:
            return Translation(path, None)
        is_chat = path != Completion.path
        options = {name: body[name] for name in ("temperature", "seed", "stop", "repeat_penalty") if name in body}
        options["num_predict"] = body["max_tokens" if is_chat else "n_predict"]
        options |= {"num_ctx": self.context} if self.context else {}
        common = {"model": self.model, "stream": True, "options": options}
        if is_chat:
            words = {name: body[name] for name in ("messages", "tools") if name in body}
            return Translation("/api/chat", common | words, _AnswerReader(_ollama_step, True))
        raw = {"prompt": body["prompt"], "raw": True}
        return Translation("/api/generate", common | raw, _AnswerReader(_ollama_step, False))


@dataclass(frozen=True, slots=True)
class _OpenAi:
    model: str

    async def translation(self, path: str, body: Mapping[str, Any] | None, ask: Ask) -> Translation:
        if body is None:
            return Translation(path, None)
        is_chat = path != Completion.path
        common = {name: body[name] for name in ("temperature", "seed", "stop") if name in body}
        common |= {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        common["max_tokens"] = body["max_tokens" if is_chat else "n_predict"]
        if is_chat:
            words = {name: body[name] for name in ("messages", "tools") if name in body}
            return Translation("/v1/chat/completions", common | words, _AnswerReader(_openai_step, True))
        return Translation("/v1/completions", common | {"prompt": body["prompt"]}, _AnswerReader(_openai_step, False))


@dataclass(frozen=True, slots=True)
class _Step:
    """What one message of a stream says; `reason` ends the answer. `calls` are OpenAI's pieces of tool calls; `timings`
    are llama-server's fields."""

    text: str = ""
    reasoning: str = ""
    reason: str = ""
    calls: Sequence[Mapping[str, Any]] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


def _ollama_step(message: Mapping[str, Any]) -> _Step:
    """Durations are in nanoseconds."""
    chat = message.get("message") or {}
    names = {"prompt_n": "prompt_eval_count", "predicted_n": "eval_count"}
    timings = {name: _amount(message.get(theirs)) for name, theirs in names.items()}
    names = {"prompt_ms": "prompt_eval_duration", "predicted_ms": "eval_duration"}
    timings |= {name: _amount(message.get(theirs)) / 1e6 for name, theirs in names.items()}
    is_done = message.get("done") is True
    return _Step(
        text=str(chat.get("content") or message.get("response") or ""),
        reasoning=str(chat.get("thinking") or message.get("thinking") or ""),
        reason=str(message.get("done_reason") or "stop") if is_done else "",
        calls=[_whole_call(call) for call in chat.get("tool_calls") or []],
        timings=timings if is_done else {},
    )


def _openai_step(message: Mapping[str, Any]) -> _Step:
    """The usage comes in a message of its own, after the one with the reason; it has counts and no durations, but
    servers that are made of llama-server add its `timings`."""
    timings: dict[str, float] = {}
    if isinstance(usage := message.get("usage"), dict):
        cached = _amount((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
        timings = {
            "cache_n": cached,
            "prompt_n": _amount(usage.get("prompt_tokens")) - cached,
            "predicted_n": _amount(usage.get("completion_tokens")),
        }
    if isinstance(message.get("timings"), dict):
        timings |= {name: _amount(value) for name, value in message["timings"].items()}
    choice: Mapping[str, Any] = next(iter(message.get("choices") or []), {})
    delta = choice.get("delta") or choice.get("message") or {}
    return _Step(
        text=str(delta.get("content") or choice.get("text") or ""),
        reasoning=str(delta.get("reasoning_content") or delta.get("reasoning") or ""),
        reason=str(choice.get("finish_reason") or ""),
        calls=[_piece_of_call(call) for call in delta.get("tool_calls") or []],
        timings=timings,
    )


def _whole_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's arguments are an object, and its calls are whole."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"function": {"name": str(function["name"]), "arguments": text}}


def _piece_of_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    texts = {name: str(function.get(name) or "") for name in ("name", "arguments")}
    return {"index": int(_amount(call.get("index"))), "function": texts}


def _amount(value: object) -> float:
    """0 for what is no count or duration."""
    return float(value) if type(value) in (int, float) and 0 <= value < _MOST else 0  # type: ignore[operator, arg-type]


class _AnswerReader:
    """A stream of JSON, one object a line or as server-sent events, to llama-server's events. `<think>` that a server
    leaves in the text is separated, as llama-server does."""

    def __init__(self, read: Callable[[Mapping[str, Any]], _Step], is_chat: bool) -> None:
        self._read = read
        self._is_chat = is_chat
        self._split = ReasoningSplit(split=is_chat)
        self._rest = b""
        self._reason = ""
        self._calls = 0  # whole ones, which the server does not number
        self._timings: dict[str, float] = {}

    def feed(self, content: bytes, *, is_stream: bool) -> bytes:
        *lines, self._rest = (self._rest + content).split(b"\n")
        return b"".join(event for line in lines for event in self._events(line))

    def finish(self) -> bytes:
        last = [*self._events(self._rest), *map(self._piece, self._split.finish())]
        return b"".join(last) + (self._end() if self._reason else b"")

    def _events(self, line: bytes) -> Iterator[bytes]:
        name, colon, value = line.strip().partition(b":")
        text = value.strip() if colon and name in (b"data", b"error") else line.strip()
        if not text.startswith(b"{"):  # an empty line, a comment, [DONE]
            return
        try:
            message = json.loads(text)
            step = _Step() if message.get("error") else self._read(message)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            message, step = {"error": f"the answer has another form than this API's: {text[:80]!r}"}, _Step()
        if message.get("error"):
            yield _event({"error": message["error"]})
            return
        self._reason = step.reason or self._reason
        self._timings |= step.timings
        if step.reasoning:
            yield self._piece(TextPiece(step.reasoning, reasoning=True))
        for piece in self._split.feed(step.text):
            yield self._piece(piece)
        for call in step.calls:
            self._calls += "index" not in call
            yield _event({"choices": [{"delta": {"tool_calls": [{"index": self._calls - 1, **call}]}}]})

    def _piece(self, piece: TextPiece) -> bytes:
        if not self._is_chat:
            return _event({"content": piece.text, "stop": False})
        return _event({"choices": [{"delta": {"reasoning_content" if piece.reasoning else "content": piece.text}}]})

    def _end(self) -> bytes:
        # A zero is no time: one of these fields is there, so that the message has timings.
        timings = {"prompt_n": 0, **self._timings}
        if self._is_chat:
            return _event({"choices": [{"delta": {}, "finish_reason": self._reason}], "timings": timings})
        stop_type = "limit" if self._reason == "length" else "eos"
        return _event({"content": "", "stop": True, "stop_type": stop_type, "timings": timings})


def _event(message: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"

"""The answer bodies of llama-server, built once for all servers that are written in Python.

Pure. Field names as the server of llama.cpp b11434 gave them."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trilithon.engines.wire.bodies import timings_body, usage_body
from trilithon.engines.wire.generation import (
    GeneratedToken,
    GenerationEnd,
    GenerationRequest,
    GenerationStep,
    Probability,
    PromptEvaluated,
)
from trilithon.engines.wire.requests import TextCodec
from trilithon.engines.wire.served_model import ServedModel
from trilithon.engines.wire.text_stream import TextPiece
from trilithon.engines.wire.tool_calls import ToolCall, ToolCallStream

__all__ = ["ChatAnswer", "CompletionAnswer", "WireAnswer", "embeddings_body", "pieces_body"]


@dataclass(slots=True, kw_only=True)
class WireAnswer(ABC):
    """One answer, as a stream of events (`events`) or as one body (`add` for each step, then `whole`)."""

    model: ServedModel
    text: TextCodec
    request: GenerationRequest
    body: Mapping[str, Any]
    started: bool = False

    last_event: ClassVar[str] = ""

    def events(self, step: GenerationStep) -> Iterator[dict[str, Any]]:
        if isinstance(step, PromptEvaluated):
            if self.body.get("return_progress"):
                yield self._progress(step)
            if step.processed < step.total:
                return
        if not self.started:
            self.started = True
            yield from self._first()
        if isinstance(step, GeneratedToken):
            yield from self.add(step)
        elif isinstance(step, GenerationEnd):
            yield from self._last(step)

    @abstractmethod
    def add(self, token: GeneratedToken) -> list[dict[str, Any]]:
        """Takes one token into the answer; gives the events for it."""

    @abstractmethod
    def whole(self, end: GenerationEnd) -> dict[str, Any]: ...

    def _first(self) -> list[dict[str, Any]]:
        return []

    @abstractmethod
    def _last(self, end: GenerationEnd) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _progress(self, progress: PromptEvaluated) -> dict[str, Any]: ...

    def _probability(self, probability: Probability) -> dict[str, Any]:
        top = [self._candidate(token, logprob) for token, logprob in probability.top]
        return {**self._candidate(probability.token, probability.logprob), "top_logprobs": top}

    def _candidate(self, token: int, logprob: float) -> dict[str, Any]:
        content = self.text.bytes_of(token)
        return {"id": token, "token": content.decode(errors="replace"), "bytes": list(content), "logprob": logprob}


@dataclass(slots=True, kw_only=True)
class CompletionAnswer(WireAnswer):
    """The answer to `/completion`."""

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)

    def add(self, token: GeneratedToken) -> list[dict[str, Any]]:
        self.tokens.append(token.token)
        text = _joined(token.pieces)
        self.texts.append(text)
        chunk = self._chunk(text, [token.token])
        if token.probability:
            body = self._probability(token.probability)
            self.probabilities.append(body)
            chunk["completion_probabilities"] = [body]
        return [chunk] if text or token.probability else []

    def whole(self, end: GenerationEnd) -> dict[str, Any]:
        content = "".join(self.texts) + _joined(end.rest)
        tokens = self.tokens if self.body.get("return_tokens") else []
        probabilities = {"completion_probabilities": self.probabilities} if self.request.candidates else {}
        return self._final(content, tokens, end) | probabilities | {"has_new_line": "\n" in content}

    def _last(self, end: GenerationEnd) -> list[dict[str, Any]]:
        rest = [self._chunk(_joined(end.rest), [])] if end.rest else []
        return [*rest, self._final("", [], end)]

    def _progress(self, progress: PromptEvaluated) -> dict[str, Any]:
        return {**self._chunk("", [0]), "prompt_progress": _progress_body(progress)}

    def _chunk(self, content: str, tokens: list[int]) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "tokens": tokens,
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self.tokens),
            "tokens_evaluated": len(self.request.prompt_tokens or ()),
        }

    def _final(self, content: str, tokens: list[int], end: GenerationEnd) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        count = end.timings.cache_n + end.timings.prompt_n if prompt is None else len(prompt)
        return {
            **self._chunk(content, tokens),
            "stop": True,
            "id_slot": max(self.request.slot, 0),
            "model": self.model.name,
            "tokens_predicted": end.timings.predicted_n,
            "tokens_evaluated": count,
            "generation_settings": self._settings(),
            "prompt": self._prompt_text(),
            "has_new_line": False,
            "truncated": end.full,
            "stop_type": end.stop_type,
            "stopping_word": end.stopping_word,
            "tokens_cached": count + max(end.timings.predicted_n - 1, 0),
            "timings": timings_body(end.timings),
        }

    def _prompt_text(self) -> str:
        if isinstance(self.request.prompt, str):
            return self.request.prompt
        return self.text.detokenize(self.request.prompt) if self.text.has_tokenizer else ""

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.body.get("seed", 0),
            "temperature": self.body.get("temperature", 0.8),
            "max_tokens": self.request.limit,
            "n_predict": self.request.limit,
            "ignore_eos": self.request.ignore_eos,
            "stream": bool(self.body.get("stream")),
            "stop": list(self.request.stop),
            "n_probs": self.request.candidates,
            **self.request.settings(),
        }


@dataclass(slots=True, kw_only=True)
class ChatAnswer(WireAnswer):
    """The answer to `/v1/chat/completions`. Thinking goes to `reasoning_content`, without its tags; each complete tool
    call to `tool_calls`."""

    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    calls: list[ToolCall] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)
    call_stream: ToolCallStream | None = None

    last_event: ClassVar[str] = "data: [DONE]\n\n"

    def __post_init__(self) -> None:
        self.call_stream = ToolCallStream(self.request.tools) if self.request.tools else None

    def add(self, token: GeneratedToken) -> list[dict[str, Any]]:
        chunks = [self._chunk(delta) for piece in token.pieces for delta in self._deltas(piece)]
        if token.probability:
            body = self._probability(token.probability)
            self.probabilities.append(body)
            chunks = chunks or [self._chunk({"content": ""})]
            chunks[0]["choices"][0]["logprobs"] = {"content": [body]}
        return chunks

    def whole(self, end: GenerationEnd) -> dict[str, Any]:
        self._last_deltas(end)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_call_body(call) for call in self.calls]
        choice: dict[str, Any] = {"finish_reason": self._finish_reason(end), "index": 0, "message": message}
        if self.request.candidates:
            choice["logprobs"] = {"content": self.probabilities}
        whole = self._chunk({}) | {"object": "chat.completion", "choices": [choice]}
        return {**whole, "usage": usage_body(end.timings), **self._figures(end)}

    def _first(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": None})]

    def _last(self, end: GenerationEnd) -> list[dict[str, Any]]:
        rest = [self._chunk(delta) for delta in self._last_deltas(end)]
        last, figures = self._chunk({}, self._finish_reason(end)), self._figures(end)
        options = self.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            return [*rest, last, {**self._chunk({}), "choices": [], "usage": usage_body(end.timings), **figures}]
        return [*rest, {**last, **figures}]

    def _progress(self, progress: PromptEvaluated) -> dict[str, Any]:
        return {**self._first()[0], "prompt_progress": _progress_body(progress)}

    def _figures(self, end: GenerationEnd) -> dict[str, Any]:
        """The timings and, for `"verbose": true`, what ended the answer."""
        verbose = {"__verbose": {"stop_type": end.stop_type, "stopping_word": end.stopping_word}}
        return {"timings": timings_body(end.timings), **(verbose if self.body.get("verbose") else {})}

    def _deltas(self, piece: TextPiece) -> list[dict[str, Any]]:
        if piece.reasoning:
            self.reasoning.append(piece.text)
            return [{"reasoning_content": piece.text}]
        return self._parts([piece.text] if self.call_stream is None else self.call_stream.feed(piece.text))

    def _last_deltas(self, end: GenerationEnd) -> list[dict[str, Any]]:
        deltas = [delta for piece in end.rest for delta in self._deltas(piece)]
        return deltas + self._parts([] if self.call_stream is None else self.call_stream.finish())

    def _parts(self, parts: Sequence[str | ToolCall]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                deltas.append({"tool_calls": [{"index": len(self.calls), **_call_body(part)}]})
                self.calls.append(part)
            else:
                self.content.append(part)
                deltas.append({"content": part})
        return deltas

    def _finish_reason(self, end: GenerationEnd) -> str:
        if end.stop_type == "limit":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}],
            "created": self.created,
            "id": self.id,
            "model": self.model.name,
            "system_fingerprint": self.model.build,
            "object": "chat.completion.chunk",
        }


def _joined(pieces: Sequence[TextPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def _progress_body(progress: PromptEvaluated) -> dict[str, int]:
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.elapsed_ms),
    }


def _call_body(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def pieces_body(tokens: Sequence[int], text: TextCodec) -> list[dict[str, Any]]:
    """Token ids with their text, or with their bytes where these are not valid UTF-8."""

    def piece(content: bytes) -> str | list[int]:
        try:
            return content.decode()
        except UnicodeDecodeError:
            return list(content)

    return [{"id": token, "piece": piece(text.bytes_of(token))} for token in tokens]


def embeddings_body(model: str, inputs: Sequence[Sequence[int]], vectors: Sequence[list[float]]) -> dict[str, Any]:
    count = sum(map(len, inputs))
    data = [{"embedding": vector, "index": index, "object": "embedding"} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"model": model, "object": "list", "usage": usage, "data": data}

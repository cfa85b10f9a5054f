"""The answer bodies of llama-server, as the RKLLM server gives them: pure functions.

Field names as the server of llama.cpp b11434 was seen to give them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trilithon.engines.rkllm.child.answering import GenerationEnd, GenerationJob, Given
from trilithon.engines.rkllm.child.slot import RkllmSlot
from trilithon.engines.rkllm.child.template import IMAGE_TAG, ModelText
from trilithon.engines.wire.bodies import Probability, timings_body, usage_body, verbose_body
from trilithon.engines.wire.text_stream import TextPiece
from trilithon.engines.wire.tool_calls import ToolCall, ToolCallStream

__all__ = [
    "ChatShape",
    "CompletionShape",
    "ServedModel",
    "describe_models",
    "describe_props",
    "describe_slots",
    "embeddings_body",
    "pieces_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What does not change while the server runs."""

    model: str
    build: str
    created: int
    text: ModelText
    vision: bool


def _candidate_body(about: ServedModel, token: int, logprob: float) -> dict[str, Any]:
    text = about.text.detokenize([token]) if about.text.has_tokenizer else ""
    return {"id": token, "token": text, "bytes": list(text.encode()), "logprob": logprob}


def _probability_body(about: ServedModel, probability: Probability) -> dict[str, Any]:
    top = [_candidate_body(about, token, logprob) for token, logprob in probability.top]
    return {**_candidate_body(about, probability.token, probability.logprob), "top_logprobs": top}


def _text(pieces: Sequence[TextPiece]) -> str:
    return "".join(piece.text for piece in pieces)


@dataclass(slots=True)
class CompletionShape:
    """The bodies of one `/completion` answer, as a stream of events or as a whole."""

    about: ServedModel
    request: GenerationJob
    body: Mapping[str, Any]
    given: list[Given] = field(default_factory=list)

    def opening(self) -> list[dict[str, Any]]:
        return []

    def piece(self, given: Given) -> list[dict[str, Any]]:
        self.given.append(given)
        text = _text(given.pieces)
        if not text and given.probability is None:
            return []
        chunk = self._chunk(text, [given.token])
        if given.probability:
            chunk["completion_probabilities"] = [_probability_body(self.about, given.probability)]
        return [chunk]

    def closing(self, ended: GenerationEnd) -> list[dict[str, Any]]:
        rest = [self._chunk(_text(ended.rest), [])] if ended.rest else []
        return [*rest, self._final("", [], ended)]

    def whole(self, ended: GenerationEnd) -> dict[str, Any]:
        content = "".join(_text(given.pieces) for given in self.given) + _text(ended.rest)
        tokens = [given.token for given in self.given] if self.body.get("return_tokens") else []
        found = [_probability_body(self.about, given.probability) for given in self.given if given.probability]
        more = {"completion_probabilities": found} if self.request.candidates else {}
        return self._final(content, tokens, ended) | more | {"has_new_line": "\n" in content}

    def _prompt_tokens(self, ended: GenerationEnd | None = None) -> int:
        if isinstance(self.request.prompt, list | tuple):
            return len(self.request.prompt)
        return ended.timings.prompt_n + ended.timings.cache_n if ended else 0

    def _chunk(self, content: str, tokens: list[int]) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "tokens": tokens,
            "stop": False,
            "id_slot": 0,
            "tokens_predicted": len(self.given),
            "tokens_evaluated": self._prompt_tokens(),
        }

    def _final(self, content: str, tokens: list[int], ended: GenerationEnd) -> dict[str, Any]:
        prompt = self._prompt_tokens(ended)
        return {
            **self._chunk(content, tokens),
            "stop": True,
            "model": self.about.model,
            "tokens_predicted": ended.timings.predicted_n,
            "tokens_evaluated": prompt,
            "generation_settings": self._settings(),
            "prompt": self._prompt_text(),
            "has_new_line": False,
            "truncated": ended.full,
            "stop_type": ended.stop_type,
            "stopping_word": ended.stopping_word,
            "tokens_cached": prompt + max(ended.timings.predicted_n - 1, 0),
            "timings": timings_body(ended.timings),
        }

    def _prompt_text(self) -> str:
        prompt = self.request.prompt
        if isinstance(prompt, list | tuple):
            return self.about.text.detokenize(prompt) if self.about.text.has_tokenizer else ""
        return prompt if isinstance(prompt, str) else ""

    def _settings(self) -> dict[str, Any]:
        sampling = self.request.sampling
        return {
            "temperature": 0.0 if sampling.top_k == 1 else sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repeat_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "mirostat": sampling.mirostat,
            "max_tokens": self.request.limit,
            "n_predict": self.request.limit,
            "ignore_eos": self.request.ignore_eos,
            "stream": bool(self.body.get("stream")),
            "stop": list(self.request.stop),
            "n_probs": self.request.candidates,
        }


@dataclass(slots=True)
class ChatShape:
    """The bodies of one `/v1/chat/completions` answer. Thinking goes to `reasoning_content`, without its tags; calls
    of tools, as soon as each is whole, to `tool_calls`."""

    about: ServedModel
    request: GenerationJob
    body: Mapping[str, Any]
    id: str
    tools: frozenset[str]
    calls: list[ToolCall] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=lambda: {"content": "", "reasoning_content": ""})
    probabilities: list[dict[str, Any]] = field(default_factory=list)
    stream: ToolCallStream | None = None

    def __post_init__(self) -> None:
        self.stream = ToolCallStream(self.tools) if self.tools else None

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": None})]

    def piece(self, given: Given) -> list[dict[str, Any]]:
        chunks = [self._chunk(delta) for piece in given.pieces for delta in self._deltas(piece)]
        if given.probability:
            body = _probability_body(self.about, given.probability)
            self.probabilities.append(body)
            chunks = chunks or [self._chunk({"content": ""})]
            chunks[0]["choices"][0]["logprobs"] = {"content": [body]}
        return chunks

    def closing(self, ended: GenerationEnd) -> list[dict[str, Any]]:
        rest = [self._chunk(delta) for delta in self._last_deltas(ended)]
        last, timings = self._chunk({}, self._finish_reason(ended)), timings_body(ended.timings)
        more = verbose_body(self.body, ended.stop_type, ended.stopping_word)
        options = self.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            usage = {**self._chunk({}), "choices": [], "usage": usage_body(ended.timings), "timings": timings}
            return [*rest, last, {**usage, **more}]
        return [*rest, {**last, "timings": timings, **more}]

    def whole(self, ended: GenerationEnd) -> dict[str, Any]:
        self._last_deltas(ended)
        message: dict[str, Any] = {"role": "assistant", "content": self.said["content"]}
        if self.said["reasoning_content"]:
            message["reasoning_content"] = self.said["reasoning_content"]
        if self.calls:
            message["content"] = self.said["content"] or None
            message["tool_calls"] = [_call_body(call) for call in self.calls]
        choice: dict[str, Any] = {"finish_reason": self._finish_reason(ended), "index": 0, "message": message}
        if self.request.candidates:
            choice["logprobs"] = {"content": self.probabilities}
        whole = self._chunk({}) | {"object": "chat.completion", "choices": [choice]}
        more = verbose_body(self.body, ended.stop_type, ended.stopping_word)
        return {**whole, "usage": usage_body(ended.timings), "timings": timings_body(ended.timings), **more}

    def _deltas(self, piece: TextPiece) -> list[dict[str, Any]]:
        if piece.reasoning:
            self.said["reasoning_content"] += piece.text
            return [{"reasoning_content": piece.text}]
        return self._parts([piece.text] if self.stream is None else self.stream.feed(piece.text))

    def _last_deltas(self, ended: GenerationEnd) -> list[dict[str, Any]]:
        deltas = [delta for piece in ended.rest for delta in self._deltas(piece)]
        return deltas + self._parts([] if self.stream is None else self.stream.finish())

    def _parts(self, parts: Sequence[str | ToolCall]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                deltas.append({"tool_calls": [{"index": len(self.calls), **_call_body(part)}]})
                self.calls.append(part)
            else:
                self.said["content"] += part
                deltas.append({"content": part})
        return deltas

    def _finish_reason(self, ended: GenerationEnd) -> str:
        if ended.stop_type == "limit":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}],
            "created": self.about.created,
            "id": self.id,
            "model": self.about.model,
            "system_fingerprint": self.about.build,
            "object": "chat.completion.chunk",
        }


def _call_body(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def pieces_of(tokens: Sequence[int], detokenize: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    return [{"id": token, "piece": detokenize([token])} for token in tokens]


def embeddings_body(model: str, inputs: Sequence[Sequence[int]], vectors: Sequence[list[float]]) -> dict[str, Any]:
    count = sum(map(len, inputs))
    data = [{"embedding": vector, "index": index, "object": "embedding"} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"model": model, "object": "list", "usage": usage, "data": data}


def describe_props(about: ServedModel, slot: RkllmSlot) -> dict[str, Any]:
    facts, runtime = slot.runtime.facts, slot.runtime
    return {
        "default_generation_settings": {"params": {"temperature": 0.8, "n_predict": -1}, "n_ctx": runtime.context},
        "total_slots": 1,
        "model_alias": about.model,
        "model_ftype": facts.get("dtype", ""),
        "model_path": about.model,
        "modalities": {"vision": about.vision, "video": False, "audio": False},
        "media_marker": IMAGE_TAG,
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "ui": False,
        "ui_settings": {},
        "chat_template": "",
        "chat_template_caps": {"supports_system_role": True, "supports_tools": about.text.has_template},
        "bos_token": "",
        "eos_token": "",
        "build_info": about.build,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
        "rkllm": {"abi": runtime.abi.name, "note": about.text.note, **facts},
    }


def describe_models(about: ServedModel, slot: RkllmSlot, vocabulary: int, size_bytes: int) -> dict[str, Any]:
    facts, context = slot.runtime.facts, slot.runtime.context
    meta = {
        "vocab_type": 1,
        "n_vocab": vocabulary,
        "n_ctx": context,
        "n_ctx_train": int(facts.get("context", context)),
        "n_embd": 0,
        "n_params": 0,
        "size": size_bytes,
        "ftype": facts.get("dtype", ""),
    }
    one = {"id": about.model, "aliases": [about.model], "tags": [], "object": "model", "created": about.created}
    return {
        "models": [{"name": about.model, "model": about.model, "type": "model", "capabilities": ["completion"]}],
        "object": "list",
        "data": [{**one, "owned_by": "rkllm", "meta": meta}],
    }


def describe_slots(slot: RkllmSlot) -> list[dict[str, Any]]:
    one: dict[str, Any] = {
        "id": 0,
        "n_ctx": slot.runtime.context,
        "speculative": False,
        "is_processing": slot.processing,
    }
    if slot.totals.requests:
        one |= {
            "id_task": slot.totals.requests,
            "n_prompt_tokens": len(slot.tokens),
            "next_token": [{"n_decoded": slot.decoded}],
        }
    return [one]

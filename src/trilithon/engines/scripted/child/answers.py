"""The answer bodies of llama-server, as the scripted engine gives them: pure functions.

Field names as the server of llama.cpp b11434 was seen to give them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trilithon import __version__
from trilithon.engines.scripted.child.model import EMBEDDING_SIZE, VOCABULARY, embedding
from trilithon.engines.scripted.child.requests import IMAGE
from trilithon.engines.scripted.child.slot import Evaluated, ScriptedEnd, ScriptedJob, ScriptedPiece, ScriptedSlot
from trilithon.engines.scripted.child.slots import Slots
from trilithon.engines.wire.bodies import Probability, timings_body, usage_body, verbose_body

__all__ = [
    "ChatShape",
    "CompletionShape",
    "describe_models",
    "describe_props",
    "describe_slots",
    "embeddings_body",
    "pieces_of",
]

_BUILD_INFO = f"scripted-{__version__}"
_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"


def _candidate_body(token: int, logprob: float) -> dict[str, Any]:
    piece = VOCABULARY.bytes_of(token)
    return {"id": token, "token": piece.decode(errors="replace"), "bytes": list(piece), "logprob": logprob}


def _probability_body(probability: Probability) -> dict[str, Any]:
    top = [_candidate_body(token, logprob) for token, logprob in probability.top]
    return {**_candidate_body(probability.token, probability.logprob), "top_logprobs": top}


def _progress_body(progress: Evaluated) -> dict[str, int]:
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.elapsed_ms),
    }


@dataclass(slots=True)
class CompletionShape:
    """The bodies of one `/completion` answer, as a stream of events or as a whole."""

    model: str
    request: ScriptedJob
    body: Mapping[str, Any]
    predicted: int = 0

    def opening(self) -> list[dict[str, Any]]:
        return []

    def progress(self, progress: Evaluated) -> dict[str, Any]:
        return {**self._chunk("", [0]), "prompt_progress": _progress_body(progress)}

    def piece(self, piece: ScriptedPiece) -> dict[str, Any] | None:
        self.predicted += 1
        if not piece.text:
            return None
        chunk = self._chunk(piece.text, [piece.token])
        if piece.probability:
            chunk["completion_probabilities"] = [_probability_body(piece.probability)]
        return chunk

    def closing(self, ended: ScriptedEnd) -> list[dict[str, Any]]:
        rest = [self._chunk(ended.rest, [])] if ended.rest else []
        return [*rest, self._final("", [], ended)]

    def whole(self, pieces: Sequence[ScriptedPiece], ended: ScriptedEnd) -> dict[str, Any]:
        content = "".join(piece.text for piece in pieces) + ended.rest
        tokens = [piece.token for piece in pieces] if self.body.get("return_tokens") else []
        probabilities = [_probability_body(piece.probability) for piece in pieces if piece.probability]
        more = {"completion_probabilities": probabilities} if probabilities else {}
        return self._final(content, tokens, ended) | more | {"has_new_line": "\n" in content}

    def _chunk(self, content: str, tokens: list[int]) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "tokens": tokens,
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": self.predicted,
            "tokens_evaluated": len(self.request.prompt),
        }

    def _final(self, content: str, tokens: list[int], ended: ScriptedEnd) -> dict[str, Any]:
        return {
            **self._chunk(content, tokens),
            "stop": True,
            "id_slot": 0,
            "model": self.model,
            "tokens_predicted": ended.timings.predicted_n,
            "generation_settings": self._settings(),
            "prompt": VOCABULARY.detokenize(self.request.prompt),
            "has_new_line": False,
            "truncated": ended.full,
            "stop_type": ended.stop_type,
            "stopping_word": ended.stopping_word,
            "tokens_cached": len(self.request.prompt) + ended.timings.predicted_n - 1,
            "timings": timings_body(ended.timings),
        }

    def _settings(self) -> dict[str, Any]:
        limit = -1 if self.request.limit is None else self.request.limit
        return {
            "seed": self.body.get("seed", 0),
            "temperature": self.body.get("temperature", 0.8),
            "max_tokens": limit,
            "n_predict": limit,
            "ignore_eos": self.request.ignore_eos,
            "stream": bool(self.body.get("stream")),
            "stop": list(self.request.stop),
            "n_probs": self.request.candidates,
        }


@dataclass(slots=True)
class ChatShape:
    """The bodies of one `/v1/chat/completions` answer. Thinking goes to `reasoning_content`, without its tags."""

    model: str
    request: ScriptedJob
    body: Mapping[str, Any]
    id: str
    created: int

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": None})]

    def progress(self, progress: Evaluated) -> dict[str, Any]:
        return {**self.opening()[0], "prompt_progress": _progress_body(progress)}

    def piece(self, piece: ScriptedPiece) -> dict[str, Any] | None:
        if piece.part == "mark" or not piece.text:
            return None
        chunk = self._chunk({"content" if piece.part == "answer" else "reasoning_content": piece.text})
        if piece.probability:
            chunk["choices"][0]["logprobs"] = {"content": [_probability_body(piece.probability)]}
        return chunk

    def closing(self, ended: ScriptedEnd) -> list[dict[str, Any]]:
        rest = [self._chunk({"content": ended.rest})] if ended.rest else []
        last, timings = self._chunk({}, _finish_reason(ended)), timings_body(ended.timings)
        more = verbose_body(self.body, ended.stop_type, ended.stopping_word)
        options = self.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            usage = {**self._chunk({}), "choices": [], "usage": usage_body(ended.timings), "timings": timings}
            return [*rest, last, {**usage, **more}]
        return [*rest, {**last, "timings": timings, **more}]

    def whole(self, pieces: Sequence[ScriptedPiece], ended: ScriptedEnd) -> dict[str, Any]:
        def text(part: str) -> str:
            return "".join(piece.text for piece in pieces if piece.part == part)

        message = {"role": "assistant", "content": text("answer") + ended.rest}
        if text("thinking"):
            message["reasoning_content"] = text("thinking")
        choice: dict[str, Any] = {"finish_reason": _finish_reason(ended), "index": 0, "message": message}
        if self.request.candidates:
            choice["logprobs"] = {
                "content": [_probability_body(piece.probability) for piece in pieces if piece.probability]
            }
        whole = self._chunk({}) | {"object": "chat.completion", "choices": [choice]}
        more = verbose_body(self.body, ended.stop_type, ended.stopping_word)
        return {**whole, "usage": usage_body(ended.timings), "timings": timings_body(ended.timings), **more}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}],
            "created": self.created,
            "id": self.id,
            "model": self.model,
            "system_fingerprint": _BUILD_INFO,
            "object": "chat.completion.chunk",
        }


def _finish_reason(ended: ScriptedEnd) -> str:
    return "length" if ended.stop_type == "limit" else "stop"


def pieces_of(tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Ids with their text, or with their bytes where these are no whole characters."""

    def piece(token: int) -> str | list[int]:
        content = VOCABULARY.bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return list(content)

    return [{"id": token, "piece": piece(token)} for token in tokens]


def embeddings_body(model: str, inputs: Sequence[Sequence[int]]) -> dict[str, Any]:
    count = sum(map(len, inputs))
    data = [
        {"embedding": embedding(tokens), "index": index, "object": "embedding"} for index, tokens in enumerate(inputs)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"model": model, "object": "list", "usage": usage, "data": data}


def describe_props(model: str, slots: Slots) -> dict[str, Any]:
    return {
        "default_generation_settings": {"params": {"temperature": 0.8, "n_predict": -1}, "n_ctx": slots.context},
        "total_slots": len(slots.all),
        "model_alias": model,
        "model_ftype": "scripted",
        "model_path": model,
        "modalities": {"vision": True, "video": False, "audio": False},
        "media_marker": IMAGE,
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "ui": False,
        "ui_settings": {},
        "chat_template": _TEMPLATE,
        "chat_template_caps": {"supports_system_role": True, "supports_tools": False},
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "build_info": _BUILD_INFO,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }


def describe_models(model: str, slots: Slots, created: int) -> dict[str, Any]:
    meta = {
        "vocab_type": 1,
        "n_vocab": len(VOCABULARY),
        "n_ctx": slots.context,
        "n_ctx_train": slots.context,
        "n_embd": EMBEDDING_SIZE,
        "n_params": 0,
        "size": 0,
        "ftype": "scripted",
    }
    one = {"id": model, "aliases": [model], "tags": [], "object": "model", "created": created}
    return {
        "models": [{"name": model, "model": model, "type": "model", "capabilities": ["completion"]}],
        "object": "list",
        "data": [{**one, "owned_by": "scripted", "meta": meta}],
    }


def describe_slots(slots: Slots) -> list[dict[str, Any]]:
    def one(number: int, slot: ScriptedSlot) -> dict[str, Any]:
        known = {"id": number, "n_ctx": slot.context, "speculative": False, "is_processing": slot.processing}
        if slots.totals.requests:
            known |= {"id_task": slots.totals.requests, "n_prompt_tokens": len(slot.tokens)}
        return known

    return [one(number, slot) for number, slot in enumerate(slots.all)]

"""Answers of ik_llama.cpp's server as llama-server would give them, event by event."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trilithon.engines.ik_llamacpp.probabilities import entries_of, set_right
from trilithon.engines.wire.text_stream import StopFilter
from trilithon.errors import EngineError

__all__ = ["AnswerTranslator", "ChatAnswers", "CompletionAnswers", "slots_translated"]

Body = dict[str, Any]
T = TypeVar("T")

_PREFIX = b"data: "
_DONE = b"[DONE]"


class AnswerTranslator:
    """Applies `translate` to each event of a stream, or to the whole body; it gives the bodies to pass on. With
    `gather` the events of a stream become one body."""

    def __init__(
        self, translate: Callable[[Any], Sequence[Any]], gather: Callable[[Sequence[Body]], Body] | None = None
    ):
        self._translate = translate
        self._gather = gather
        self._gathered: list[Body] = []
        self._rest = b""
        self._is_stream = False

    def feed(self, content: bytes, *, is_stream: bool) -> bytes:
        self._is_stream = is_stream
        self._rest += content
        if not is_stream:
            return b""
        *events, self._rest = self._rest.split(b"\n\n")
        return b"".join(self._event(event) for event in events)

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        if self._is_stream and self._gather:
            return _encoded(_checked(self._gather_events, rest))
        return rest if self._is_stream else b"".join(map(_encoded, self._translated(rest)))

    def _event(self, event: bytes) -> bytes:
        value = event.removeprefix(_PREFIX)
        if value == event or value.strip() == _DONE:
            return b"" if self._gather else event + b"\n\n"
        bodies = self._translated(value)
        if self._gather:
            self._gathered += bodies
            return b""
        return b"".join(_PREFIX + _encoded(body) + b"\n\n" for body in bodies)

    def _translated(self, content: bytes) -> Sequence[Any]:
        return _checked(lambda: self._translate(json.loads(content)), content)

    def _gather_events(self) -> Body:
        assert self._gather is not None
        for body in self._gathered:
            if "error" in body:
                error = body["error"]
                raise EngineError(f"the engine failed: {error.get('message', error)}", status=500)
        return self._gather(self._gathered)


def _checked(make: Callable[[], T], content: bytes) -> T:
    """Raises EngineError for an answer of another form."""
    try:
        return make()
    except (AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
        text = f"the engine's answer has another form than that of ik_llama.cpp: {content[:80]!r}"
        raise EngineError(text, status=502, cause="bad answer") from error


def _encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


@dataclass(slots=True)
class CompletionAnswers:
    """Answers to `/completion`. With listed probabilities they come from `/v1/completions`."""

    request: Mapping[str, Any]
    counts_twice: bool = False

    def __call__(self, answer: Body) -> list[Body]:
        if "error" in answer:
            return [answer]
        return [self._from_named(answer) if "choices" in answer else self._from_plain(answer)]

    @staticmethod
    def gathered(events: Sequence[Body]) -> Body:
        listed = [entry for event in events for entry in event.get("completion_probabilities", ())]
        whole = events[-1] | {"content": "".join(event["content"] for event in events)}
        return whole | {"completion_probabilities": listed} if listed else whole

    def _from_plain(self, answer: Body) -> Body:
        if not answer.get("stop"):
            return answer
        ends = {kind: answer.pop(f"stopped_{kind}", False) for kind in ("eos", "word", "limit")}
        stop_type = next((kind for kind, ended in ends.items() if ended), "none")
        timings = _timings(answer["timings"], int(answer["tokens_evaluated"]))
        return answer | {"stop_type": stop_type, "timings": timings, "tokens": []}

    def _from_named(self, answer: Body) -> Body:
        choice = answer["choices"][0]
        entries = entries_of(answer)
        body: Body = {"index": choice["index"], "content": choice["text"], "tokens": [], "stop": False}
        if entries:
            body["completion_probabilities"] = set_right(entries) if self.counts_twice else entries
        if choice["finish_reason"] is None:
            return body
        usage = answer["usage"]
        limited = _reached_limit(self.request, answer["timings"])
        timings = _timings(answer["timings"], int(usage["prompt_tokens"]))
        ends = {"stop": True, "stop_type": "limit" if limited else "eos", "stopping_word": "", "timings": timings}
        return body | ends | {"tokens_evaluated": usage["prompt_tokens"], "tokens_predicted": timings["predicted_n"]}


@dataclass(slots=True)
class ChatAnswers:
    """Answers to `/v1/chat/completions`. `prompt_tokens` is what the events so far said; `held` is the event that ends
    the answer, until the one with the timings follows. `shown` holds back the beginning of a stop string, which this
    server sends in the events of a chat."""

    request: Mapping[str, Any]
    counts_twice: bool = False
    prompt_tokens: int = 0
    held: Body | None = None
    shown: StopFilter = field(init=False)

    def __post_init__(self) -> None:
        stop = self.request.get("stop") or []
        self.shown = StopFilter([stop] if isinstance(stop, str) else stop)

    def __call__(self, answer: Body) -> list[Body]:
        if "error" in answer:
            return [answer]
        if not self._is_shown(answer):
            return []
        usage, stated = answer.get("usage") or {}, answer.get("timings")
        self.prompt_tokens = int(usage.get("prompt_tokens", self.prompt_tokens))
        self._set_right(answer)
        if usage and answer["object"] == "chat.completion.chunk" and answer["choices"]:
            del answer["usage"]  # llama-server states it once, in the end
        if any(choice.get("finish_reason") for choice in answer["choices"]) and not stated:
            self.held = answer
            return []
        answers = [self.held, answer] if self.held else [answer]
        self.held = None
        if stated:
            self._end(answers, stated)
            answer["timings"] = _timings(stated, self.prompt_tokens)
            if "usage" in answer:
                usage["prompt_tokens_details"] = {"cached_tokens": answer["timings"]["cache_n"]}
        return answers

    @staticmethod
    def gathered(events: Sequence[Body]) -> Body:
        """Of a stream without tools, whose last event has the usage."""
        choices = [choice for event in events for choice in event["choices"]]
        deltas = [choice["delta"] for choice in choices]
        message = {"role": "assistant", "content": "".join(delta.get("content") or "" for delta in deltas)}
        if reasoning := "".join(delta.get("reasoning_content") or "" for delta in deltas):
            message["reasoning_content"] = reasoning
        listed = [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content") or ()]
        reason = next(choice["finish_reason"] for choice in reversed(choices) if choice.get("finish_reason"))
        whole = {"index": 0, "message": message, "finish_reason": reason}
        if listed:
            whole["logprobs"] = {"content": listed}
        return events[-1] | {"object": "chat.completion", "choices": [whole]}

    def _is_shown(self, answer: Body) -> bool:
        """Takes from an event what may be the beginning of a stop string; False where nothing is left of it."""
        for choice in answer["choices"]:
            delta = choice.get("delta") or {}
            if delta.get("content"):
                delta["content"] = self.shown.feed(delta["content"])
                return bool(delta["content"] or choice.get("logprobs"))
        return True

    def _set_right(self, answer: Body) -> None:
        for choice in answer["choices"]:
            entries = (choice.get("logprobs") or {}).get("content")
            if entries and self.counts_twice:
                choice["logprobs"]["content"] = set_right(entries)

    def _end(self, answers: Sequence[Body], timings: Mapping[str, Any]) -> None:
        """This server says "stop" also where the limit ended the answer. There alone what was held back is text."""
        for choice in (choice for answer in answers for choice in answer["choices"]):
            if choice.get("finish_reason") == "stop" and _reached_limit(self.request, timings):
                choice["finish_reason"] = "length"
                if "delta" in choice and (rest := self.shown.finish()):
                    choice["delta"]["content"] = rest


def slots_translated(slots: list[Body]) -> list[list[Body]]:
    return [[slot | {"is_processing": slot["state"] != 0, "next_token": [slot["next_token"]]} for slot in slots]]


def _timings(timings: Mapping[str, Any], prompt_tokens: int) -> Body:
    """With the number of tokens from the cache, and without what no llama-server has."""
    body = {name: value for name, value in timings.items() if name not in ("n_ctx", "n_past")}
    steps = max(int(timings["predicted_n"]) - 1, 0)
    rates = {
        "prompt_per_token_ms": timings["prompt_ms"] / timings["prompt_n"] if timings["prompt_n"] else 0.0,
        "predicted_per_token_ms": timings["predicted_ms"] / steps if steps else 0.0,
        "predicted_per_second": steps / timings["predicted_ms"] * 1e3 if timings["predicted_ms"] else 0.0,
    }
    return body | rates | {"cache_n": max(prompt_tokens - int(timings["prompt_n"]), 0)}


def _reached_limit(request: Mapping[str, Any], timings: Mapping[str, Any]) -> bool:
    """Whether the answer has as many tokens as were asked for, or as fit. An answer that ends by itself with exactly
    that many tokens counts as cut off: the server does not tell the two apart."""
    limits = (request.get(name) for name in ("max_completion_tokens", "max_tokens", "n_predict"))
    limit = next((int(value) for value in limits if value is not None), -1)
    return bool(timings["n_past"] + 1 >= timings["n_ctx"]) or 0 <= limit <= int(timings["predicted_n"])

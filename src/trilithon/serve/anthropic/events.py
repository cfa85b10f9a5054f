"""Anthropic's Messages API: the pieces of an answer as its blocks and its events. Pure, but for the ids."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import End, Piece

__all__ = ["MessageWriter"]

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    # Nobody here signs thoughts; the field is one that clients expect.
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


class MessageWriter:
    """Feed it the pieces; `message` is the whole as far as it has come. `stops` are the client's stop sequences: the
    model's own form may have others."""

    def __init__(self, *, model: str, stops: Sequence[str] = ()):
        self._stops = stops
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._open = ""
        self._call: int | None = None
        self._arguments = ""

    def opening(self) -> list[dict[str, Any]]:
        """The prompt's tokens are counted when the engine says so: at the end."""
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def feed(self, piece: Piece) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if piece.reasoning:
            events += self._said("thinking", piece.reasoning)
        if piece.text:
            events += self._said("text", piece.text)
        for call in piece.tool_calls:
            events += self._called(call)
        return events

    def close(self, end: End, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`provenance` is which unit did what, with the engine's clock."""
        events = self._leave()
        word = end.stop_word if end.stop_word in self._stops else ""
        stopped = {
            "stop_reason": _REASONS.get(end.reason, "stop_sequence" if word else "end_turn"),
            "stop_sequence": word or None,
        }
        usage = _usage(end.timings) if end.timings else self.message["usage"]
        self.message |= {**stopped, "usage": usage, "timings": dict(provenance)}
        delta = {"type": "message_delta", "delta": stopped, "usage": usage, "timings": dict(provenance)}
        return [*events, delta, {"type": "message_stop"}]

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _said(self, kind: str, text: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if self._open != kind:
            events += self._leave() + self._enter(kind, {**_EMPTY[kind]})
        self.message["content"][-1][kind] += text
        delta = {"type": f"{kind}_delta", kind: text}
        return [*events, {"type": "content_block_delta", "index": self._index, "delta": delta}]

    def _called(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        """OpenAI's deltas: the first of a call names it, those of one call share an index."""
        function, index = call.get("function") or {}, int(call.get("index") or 0)
        events: list[dict[str, Any]] = []
        if self._call != index:
            events += self._leave()
            name, known = str(function.get("name") or ""), call.get("id") or f"toolu_{uuid.uuid4().hex}"
            events += self._enter("tool_use", {"type": "tool_use", "id": known, "name": name, "input": {}})
            self._call = index
        if arguments := function.get("arguments"):
            self._arguments += arguments
            delta = {"type": "input_json_delta", "partial_json": arguments}
            events.append({"type": "content_block_delta", "index": self._index, "delta": delta})
        return events

    def _enter(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._open = kind
        self.message["content"].append(block)
        return [{"type": "content_block_start", "index": self._index, "content_block": {**block}}]

    def _leave(self) -> list[dict[str, Any]]:
        """The block is whole."""
        if not self._open:
            return []
        if self._open == "tool_use":
            self.message["content"][-1]["input"] = _input(self._arguments)
        self._open, self._call, self._arguments = "", None, ""
        return [{"type": "content_block_stop", "index": self._index}]


def _input(arguments: str) -> dict[str, Any]:
    """Of a call that was cut off (`max_tokens`) nothing can be made."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _usage(timings: Timings) -> dict[str, Any]:
    """Anthropic's `input_tokens` leaves out those from the cache."""
    return {
        "input_tokens": timings.prompt_n,
        "cache_read_input_tokens": timings.cache_n,
        "cache_creation_input_tokens": 0,
        "output_tokens": timings.predicted_n,
    }

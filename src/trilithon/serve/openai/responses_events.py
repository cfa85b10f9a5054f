"""OpenAI's Responses API: the pieces of an answer as its items and its numbered events. Pure, but for the ids.

Event names and their order as OpenAI's client (2.x) reads them."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import End, Piece
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.tools import custom_input

__all__ = ["ResponseWriter"]

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}
_EVENTS = {"message": "response.output_text", "reasoning": "response.reasoning_text"}
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWriter:
    """Feed it the pieces; `response` is the whole as far as it has come. `settings` is what it repeats of the request,
    `custom` are the names of custom tools."""

    def __init__(self, *, model: str, created: int, settings: Mapping[str, Any], custom: frozenset[str] = frozenset()):
        self._custom = custom
        self.response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **settings,
        }
        self._number = 0
        self._item: dict[str, Any] | None = None
        self._call: int | None = None
        self._thoughts = 0

    def opening(self) -> list[dict[str, Any]]:
        return [self._state("response.created"), self._state("response.in_progress")]

    def feed(self, piece: Piece) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if piece.reasoning:
            self._thoughts += 1
            events += self._switch("reasoning") + self._said("reasoning", piece.reasoning, ())
        if piece.text or (piece.logprobs and not piece.reasoning):
            events += self._switch("message") + self._said("message", piece.text, piece.logprobs)
        for call in piece.tool_calls:
            events += self._called(call)
        return events

    def close(self, end: End, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`provenance` is which unit did what, with the engine's clock."""
        cut = end.reason == "length"
        events = self._leave("incomplete" if cut else "completed")
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": self._usage(end.timings) if end.timings else None,
            "timings": dict(provenance),
        }
        return [*events, self._state("response.incomplete" if cut else "response.completed")]

    def failed(self, problem: ApiError) -> list[dict[str, Any]]:
        """It broke off in the middle, or before it began."""
        events = self._leave("incomplete") if self._number else self.opening()
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": str(problem)}}
        return [*events, self._state("response.failed")]

    def _usage(self, timings: Timings) -> dict[str, Any]:
        """An engine counts thoughts and answer together; each thought came as one token."""
        prompt = timings.cache_n + timings.prompt_n
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": timings.cache_n, "cache_write_tokens": 0},
            "output_tokens": timings.predicted_n,
            "output_tokens_details": {"reasoning_tokens": min(self._thoughts, timings.predicted_n)},
            "total_tokens": prompt + timings.predicted_n,
        }

    def _event(self, kind: str, /, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _state(self, name: str) -> dict[str, Any]:
        return self._event(name, response={**self.response, "output": list(self.response["output"])})

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.response["output"]) - 1}

    def _switch(self, kind: str) -> list[dict[str, Any]]:
        """Into an item of that kind, out of the one before."""
        if self._item is not None and self._item["type"] == kind:
            return []
        part = {"type": _PARTS[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}  # type: ignore[dict-item]
        events = self._leave("completed")
        events += self._enter(kind, {"role": "assistant"} if kind == "message" else {"summary": []}, content=[])
        assert self._item is not None
        self._item["content"].append(part)
        return [*events, self._event("response.content_part.added", **self._place(), content_index=0, part={**part})]

    def _enter(self, kind: str, more: Mapping[str, Any], **begun: Any) -> list[dict[str, Any]]:
        self._item = {
            "id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}",
            "type": kind,
            "status": "in_progress",
            **more,
            **begun,
        }
        self.response["output"].append(self._item)
        shown = {**self._item, **{name: type(value)() for name, value in begun.items()}}
        return [self._event("response.output_item.added", output_index=self._place()["output_index"], item=shown)]

    def _said(self, kind: str, text: str, logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        more: dict[str, Any] = {}
        if kind == "message":
            part["logprobs"] += logprobs
            more = {"logprobs": list(logprobs)}
        return [self._event(f"{_EVENTS[kind]}.delta", **self._place(), content_index=0, delta=text, **more)]

    def _called(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        """OpenAI's deltas: the first of a call names it, those of one call share an index."""
        function, index = call.get("function") or {}, int(call.get("index") or 0)
        events: list[dict[str, Any]] = []
        if self._call != index:
            events += self._leave("completed")
            named = {"call_id": call.get("id") or f"call_{uuid.uuid4().hex}", "name": str(function.get("name") or "")}
            if named["name"] in self._custom:
                events += self._enter("custom_tool_call", named, input="")
            else:
                events += self._enter("function_call", named, arguments="")
            self._call = index
        assert self._item is not None
        if self._item["type"] == "custom_tool_call":  # its text is known once the arguments are whole
            self._item["input"] += function.get("arguments") or ""
        elif arguments := function.get("arguments"):
            self._item["arguments"] += arguments
            events.append(self._event("response.function_call_arguments.delta", **self._place(), delta=arguments))
        return events

    def _leave(self, status: str) -> list[dict[str, Any]]:
        """The item is whole."""
        item, self._call = self._item, None
        if item is None:
            return []
        item["status"] = status
        place = self._place()
        self._item = None
        events: list[dict[str, Any]] = []
        if item["type"] == "custom_tool_call":
            item["input"] = custom_input(item["input"])
            name = "response.custom_tool_call_input"
            events.append(self._event(f"{name}.delta", **place, delta=item["input"]))
            events.append(self._event(f"{name}.done", **place, input=item["input"]))
        elif item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **place, **done))
        else:
            part = item["content"][0]
            told = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            name = f"{_EVENTS[item['type']]}.done"
            events.append(self._event(name, **place, content_index=0, text=part["text"], **told))
            events.append(self._event("response.content_part.done", **place, content_index=0, part=part))
        return [*events, self._event("response.output_item.done", output_index=place["output_index"], item=item)]

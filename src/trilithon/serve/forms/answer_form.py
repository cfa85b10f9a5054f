"""What is done with the bytes of an answer of a form before they reach the client: the finished text is validated, a
forced call becomes a tool call, and calls of custom tools get their own form."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trilithon.runtime.engine_errors import json_object
from trilithon.serve.forms.validation import AnswerSchema
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.tools import custom_input
from trilithon.serve.validation import wrong

__all__ = ["AnswerForm"]

_STARTS_JSON = tuple('{["-0123456789tfn')
_CUT_CALL = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """`schema` is what the text has to obey. With `forced` the text is a call, as an object with a name and arguments.
    `custom` are the names of the tools whose calls are custom calls for the client."""

    schema: AnswerSchema | None = None
    forced: bool = False
    custom: frozenset[str] = field(default=frozenset())

    async def whole(self, content: bytes) -> bytes:
        """An answer that is not streamed. Raises ApiError where it breaks the schema, or has no call, and EngineError
        for what is no answer."""
        body = json_object(content)
        if "choices" not in body:
            await self._check(str(body.get("content") or ""), cut=body.get("stop_type") == "limit")
            return content
        for choice in body["choices"]:
            message = choice["message"]
            text, cut = message.get("content") or "", choice.get("finish_reason") == "length"
            await self._check(text, cut=cut)
            if self.forced:
                message |= {"content": None, "tool_calls": [self._call(text)]}
                choice["finish_reason"] = "length" if cut else "tool_calls"
            message |= self._custom_calls(message.get("tool_calls") or ())
        return json.dumps(body, ensure_ascii=False).encode()

    async def streamed(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """An answer in server-sent events. Raises ApiError as `whole` does, before its last event."""
        stream, rest = _Stream(self), b""
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            if passed := b"".join([await stream.line(line) for line in lines]):
                yield passed
        if rest:
            yield rest

    async def _check(self, text: str, *, cut: bool) -> None:
        """The limit of tokens may cut an answer off; it then has to begin as JSON does: an engine that could not use
        the grammar writes anything."""
        if self.schema is None:
            return
        if cut:
            broken = "#" if text.strip() and not text.lstrip().startswith(_STARTS_JSON) else ""
        else:
            broken = await self.schema.check(text)
        where = self.schema.where
        if broken == "#":
            raise wrong(where, f"{where}: the engine could not hold this schema, and the answer breaks it; simplify it")
        if broken:
            raise wrong(where, f"{where}: the answer breaks {broken}, which the engine could not hold; leave it out")

    def _call(self, text: str) -> dict[str, Any]:
        """From the text of a call, whole or cut off."""
        try:
            call = json.loads(text)
            name, arguments = str(call["name"]), json.dumps(call["arguments"], ensure_ascii=False)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            beginning = _CUT_CALL.match(text)
            if beginning is None:
                message = (
                    "the answer ended before a tool was called, which tool_choice requires; raise the limit of tokens"
                )
                raise ApiError(message, status=400, field="tool_choice") from error
            name, arguments = beginning[1], text[beginning.end() :]
        function = {"name": name, "arguments": arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}

    def _custom_calls(self, calls: Any) -> dict[str, Any]:
        """The field `tool_calls`, where there is a call of a custom tool."""
        if not any(call["function"]["name"] in self.custom for call in calls):
            return {}
        return {
            "tool_calls": [custom_call(call) if call["function"]["name"] in self.custom else call for call in calls]
        }


def custom_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    entry = {"name": function["name"], "input": custom_input(str(function.get("arguments") or ""))}
    return {**{name: value for name, value in call.items() if name != "function"}, "type": "custom", "custom": entry}


@dataclass(slots=True)
class _Stream:
    """The events of one choice of an answer. `calls` are those of custom tools, which are held back until they are
    whole."""

    form: AnswerForm
    text: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    async def line(self, line: bytes) -> bytes:
        name, _, value = line.strip().partition(b":")
        if name != b"data" or not value.strip().startswith(b"{"):
            return line + b"\n"
        message = json.loads(value)
        if "error" in message:
            return line + b"\n"
        if "choices" not in message:
            self.text += str(message.get("content") or "")
            if message.get("stop") is True:
                await self.form._check(self.text, cut=message.get("stop_type") == "limit")
            return line + b"\n"
        before = b""
        for choice in message["choices"]:
            before += await self._choice(message, choice)
        if self._says_nothing(message):
            return before
        body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        return before + b"data: " + body + b"\n"

    def _says_nothing(self, message: Mapping[str, Any]) -> bool:
        """Whether all that the event had is held back."""
        held_back = self.form.forced or self.calls
        choices = message["choices"]
        return bool(held_back and choices) and not any(
            choice.get("delta") or choice.get("finish_reason") for choice in choices
        )

    async def _choice(self, message: Mapping[str, Any], choice: dict[str, Any]) -> bytes:
        """Changes the choice; returns an event that goes before it."""
        delta = choice.get("delta") or {}
        self.text += delta.get("content") or ""
        if self.form.forced:
            delta.pop("content", None)
        self._hold_back(delta)
        reason = choice.get("finish_reason")
        if not reason:
            return b""
        await self.form._check(self.text, cut=reason == "length")
        calls = list(self.calls.values())
        if self.form.forced:
            calls.append({"index": 0, **self.form._call(self.text)})
            choice["finish_reason"] = "length" if reason == "length" else "tool_calls"
        if not calls:
            return b""
        ready = [custom_call(call) if call["function"]["name"] in self.form.custom else call for call in calls]
        event = {**message, "choices": [{**choice, "delta": {"tool_calls": ready}, "finish_reason": None}]}
        event.pop("usage", None)
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    def _hold_back(self, delta: dict[str, Any]) -> None:
        passing = []
        for part in delta.get("tool_calls") or ():
            index, function = int(part.get("index") or 0), part.get("function") or {}
            if function.get("name") in self.form.custom:
                self.calls[index] = {**part, "function": {**function, "arguments": function.get("arguments") or ""}}
            elif index in self.calls:
                self.calls[index]["function"]["arguments"] += function.get("arguments") or ""
            else:
                passing.append(part)
        if "tool_calls" in delta:
            delta.pop("tool_calls")
            if passing:
                delta["tool_calls"] = passing

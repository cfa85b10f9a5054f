"""A conversation in Ollama's form as the engines take it: pure functions.

Ollama's tool calls have arguments as objects and may lack ids, its tool answers name a tool, and its pictures stand
beside the text; llama-server wants OpenAI's form of each."""

import json
from collections.abc import Sequence
from typing import Any

from trilithon.models.store.manifest import PresetMessage
from trilithon.serve.images.reading import ImagePolicy, data_url, decode_image
from trilithon.serve.ollama.bodies import OllamaMessage, OllamaToolCall
from trilithon.serve.validation import require_few, wrong

__all__ = ["conversation", "has_pictures", "question", "tools_of"]

_MOST_PICTURES = 64
_POLICY = ImagePolicy()


def conversation(
    messages: Sequence[OllamaMessage], system: str, before: Sequence[PresetMessage]
) -> list[dict[str, Any]]:
    """`system` and the messages `before` are the model's own; the client's system message goes before the model's.
    Raises Problem for what is no picture, and for a role that there is not."""
    require_few([image for message in messages for image in message.images or ()], _MOST_PICTURES, "images")
    turns: list[dict[str, Any]] = [{"role": earlier.role, "content": earlier.content} for earlier in before]
    if system and not any(earlier["role"] == "system" for earlier in turns[:1]) and not _begins_with_system(messages):
        turns.insert(0, {"role": "system", "content": system})
    calls = _Calls()
    for at, message in enumerate(messages):
        turns.append(_turn(message, calls, f"messages.{at}"))
    return turns


def question(prompt: str, images: Sequence[str], system: str, before: Sequence[PresetMessage]) -> list[dict[str, Any]]:
    """The conversation that a prompt stands for."""
    asked = OllamaMessage(role="user", content=prompt, images=list(images) or None)
    return conversation([asked], system, before)


def has_pictures(messages: Sequence[dict[str, Any]]) -> bool:
    return any(isinstance(message.get("content"), list) for message in messages)


def tools_of(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's form already; the type may be left out. Raises Problem."""
    converted = []
    for at, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") not in (None, "function") or not isinstance(function, dict) or not function.get("name"):
            raise wrong(f"tools.{at}", f"tools.{at} is not a function with a name; write type, function, function.name")
        schema = {"type": "object", "properties": {}}
        converted.append({"type": "function", "function": {"parameters": schema} | _without_nulls(function)})
    return converted


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _begins_with_system(messages: Sequence[OllamaMessage]) -> bool:
    return bool(messages) and messages[0].role == "system"


class _Calls:
    """Calls that nobody has answered yet: a template matches answers by ids, which Ollama's clients may not send."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []
        self._count = 0

    def add(self, call: OllamaToolCall) -> str:
        """Its id."""
        own = call.id or f"call_{self._count}"
        self._count += 1
        self._open.append((own, call.function.name))
        return own

    def answered(self, message: OllamaMessage) -> tuple[str, str]:
        """Id and name of the call that a message answers: as it says, else the first open one of its tool."""
        named = [call for call in self._open if message.tool_name in (None, "", call[1])]
        if message.tool_call_id:
            named = [call for call in self._open if call[0] == message.tool_call_id]
        if not named:
            return message.tool_call_id or f"call_{message.tool_name or 'unknown'}", message.tool_name or ""
        self._open.remove(named[0])
        return named[0]


def _turn(message: OllamaMessage, calls: _Calls, where: str) -> dict[str, Any]:
    if message.role not in ("system", "user", "assistant", "tool", "developer"):
        raise wrong(f"{where}.role", f"{where}.role {message.role!r} is unknown; write system, user, assistant or tool")
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    turn["content"] = message.content or ""
    if message.images:
        turn["content"] = _with_pictures(message.content or "", message.images)
    if message.thinking and message.role == "assistant":
        turn["reasoning_content"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, calls) for call in message.tool_calls]
    if message.role == "tool":
        turn["tool_call_id"], name = calls.answered(message)
        if name:
            turn["name"] = name
    return turn


def _call(call: OllamaToolCall, calls: _Calls) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": calls.add(call), "type": "function", "function": function}


def _with_pictures(text: str, images: Sequence[str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    urls = (data_url(decode_image(image, _POLICY)) for image in images)
    return [*parts, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]

"""OpenAI's Responses API: its request body as a chat for the engines. Pure functions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from trilithon.engines.base import Feature
from trilithon.serve.openai.bodies import LONGEST_NAME, StopWords, chat_body
from trilithon.serve.openai.extensions import RESIDENCE, TRANSLATED, UNHELD, Residence
from trilithon.serve.openai.tools import INPUT
from trilithon.serve.validation import MOST_MESSAGES, MOST_TOOLS, Rules, validate, wrong

__all__ = ["ResponseAsked", "ResponseBody", "response_asked"]


class ResponseBody(Residence):
    """`input` is a text, or the items of a conversation."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None
    store: bool | None = None
    stop: StopWords | None = None

    def items(self) -> list[dict[str, Any]]:
        """The input as items of a conversation."""
        text = [{"type": "message", "role": "user", "content": self.input}]
        return text if isinstance(self.input, str) else self.input


_SAME = frozenset({"temperature", "top_p", "parallel_tool_calls", "top_k", "min_p", "seed", "stop"}) | (
    TRANSLATED - {"reasoning"}  # which is a field of its own here
)
_READ_HERE = frozenset({"model"}) | RESIDENCE
_RULES = Rules(
    passed=frozenset(ResponseBody.model_fields) - _READ_HERE | _SAME,
    neutral={
        **UNHELD,
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "moderation": (),
        "prompt": (),
        "truncation": ("disabled",),
    },
)
_LOGPROBS = "message.output_text.logprobs"
_MEANT = {
    "conversation": "conversations are not supported; use previous_response_id, or send all of it as input",
    "background": "background responses are not supported; leave out background",
    "truncation": "truncation is not supported; send less, or load the model with more context",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseAsked:
    """`chat` is the engine's body, streamed; `settings` are what the response repeats of the request."""

    chat: dict[str, Any]
    needs: frozenset[Feature]
    ignored: tuple[str, ...]
    settings: dict[str, Any]


def response_asked(fields: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> ResponseAsked:
    """`earlier` are the items of the response before and of all before that. Raises Problem, naming the field."""
    for name, meant in _MEANT.items():
        if fields.get(name) is not None and fields[name] not in _RULES.neutral[name]:
            raise wrong(name, f"{name}: {meant}")
    admitted = validate({name: value for name, value in fields.items() if name not in _READ_HERE}, _RULES)
    body, ignored = admitted.body, list(admitted.ignored)
    conversation = _Conversation()
    if body.get("instructions"):
        conversation.messages.append({"role": "system", "content": body["instructions"]})
    conversation.read(earlier, "previous_response_id")
    conversation.read(body["input"])
    chat: dict[str, Any] = {"messages": conversation.messages, "stream": True}
    chat |= {name: body[name] for name in _SAME if name in body}
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    chat |= _tools(body) | _form(body.get("text", {}), ignored) | _reasoning(body.get("reasoning", {}), ignored)
    chat |= _logprobs(body, ignored)
    chat_request, needs = chat_body(chat)
    return ResponseAsked(
        chat=chat_request.body,
        needs=needs,
        ignored=(*ignored, *conversation.ignored, *chat_request.ignored),
        settings=_settings(body),
    )


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    reasoning = body.get("reasoning", {})
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": body.get("store", True),
        "temperature": body.get("temperature"),
        "text": {"format": body.get("text", {}).get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p"),
        "truncation": "disabled",
    }


@dataclass(slots=True)
class _Conversation:
    """Items become messages: what the assistant thought, said and called in one turn is one message."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    thought: str = ""

    def read(self, given: str | Sequence[Mapping[str, Any]], where: str = "input") -> None:
        if isinstance(given, str):
            self.messages.append({"role": "user", "content": given})
            return
        for at, item in enumerate(given):
            self._item(item, f"{where}.{at}")

    def _item(self, item: Mapping[str, Any], where: str) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item, where)
            case "function_call":
                self._call(item, where)
            case "custom_tool_call":
                self._call({**item, "arguments": json.dumps({INPUT: str(item.get("input") or "")})}, where)
            case "function_call_output" | "custom_tool_call_output":
                content = _text_of(item.get("output"), f"{where}.output")
                self.messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": content})
            case "reasoning":
                lists = [item[name] for name in ("content", "summary") if isinstance(item.get(name), list)]
                parts = [part for entries in lists for part in entries if isinstance(part, Mapping)]
                self.thought = "\n".join(str(part.get("text", "")) for part in parts)
                self.ignored += [] if self.thought else ["input.reasoning"]
            case "item_reference":
                raise wrong(where, f"{where}: references to items are not supported; send the item itself")
            case other:
                raise wrong(f"{where}.type", f"{where}: items of type {str(other)[:40]} are not supported")

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if isinstance(content, list):
            content = [_part(part, f"{where}.content.{at}") for at, part in enumerate(content)]
            if all(part["type"] == "text" for part in content):
                content = "".join(part["text"] for part in content)
        elif not isinstance(content, str):
            raise wrong(f"{where}.content", f"{where}.content must be a string or a list of parts")
        message: dict[str, Any] = {"role": role, "content": content}
        self.messages.append(self._with_thought(message) if role == "assistant" else message)

    def _call(self, item: Mapping[str, Any], where: str) -> None:
        name, arguments = item.get("name"), item.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, str | None):
            raise wrong(where, f"{where}: a function_call has a name, and arguments as a JSON string")
        if not self.messages or self.messages[-1]["role"] != "assistant" or self.thought:
            self.messages.append(self._with_thought({"role": "assistant", "content": None}))
        calls = self.messages[-1].setdefault("tool_calls", [])
        function = {"name": name, "arguments": arguments}
        calls.append({"id": str(item.get("call_id", "")), "type": "function", "function": function})

    def _with_thought(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.thought:
            message["reasoning_content"], self.thought = self.thought, ""
        return message


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        return {"type": "file", "file": {name: part[name] for name in ("filename", "file_data") if name in part}}
    raise wrong(where, f"{where}: {str(kind)[:40]} is not supported; use input_text and input_image with image_url")


def _text_of(output: Any, where: str) -> str:
    if isinstance(output, str):
        return output
    parts = [_part(part, f"{where}.{at}") for at, part in enumerate(output if isinstance(output, list) else [None])]
    if any(part["type"] != "text" for part in parts):
        raise wrong(where, f"{where}: tool results must be text; send images in a message")
    return "".join(part["text"] for part in parts)


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """In the form of chats; tools of other kinds go on as they are, for `offer_tools` to leave out."""
    tools = [_chat_tool(tool) for tool in body.get("tools", [])]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        choice = _nested(choice)
    return {"tools": tools} | ({} if choice is None else {"tool_choice": choice})


def _nested(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What names a tool, or the tools that are allowed, in the form of chats."""
    kind, tools = choice.get("type"), choice.get("tools")
    if kind == "allowed_tools":
        named = tools
        if isinstance(tools, list):
            named = [_nested(tool) if isinstance(tool, Mapping) else tool for tool in tools]
        return {"type": kind, kind: {"mode": choice.get("mode", "auto"), "tools": named}}
    return {"type": kind, str(kind): {"name": choice.get("name")}}


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        return {"type": kind}
    names = ("name", "description", "parameters", "strict", "format")
    return {"type": kind, kind: {name: tool[name] for name in names if tool.get(name) is not None}}


def _form(text: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    if text.get("verbosity") is not None:
        ignored.append("text.verbosity")
    form = text.get("format")
    if form is None:
        return {}
    if not isinstance(form, Mapping):
        raise wrong("text.format", 'text.format must be an object, for example {"type": "text"}')
    if form.get("type") == "json_schema":
        named = {"name": form.get("name", ""), "schema": form.get("schema"), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"response_format": {"type": form.get("type")}}


def _reasoning(reasoning: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    ignored += [f"reasoning.{name}" for name, value in reasoning.items() if name != "effort" and value is not None]
    effort = reasoning.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise wrong("reasoning.effort", "reasoning.effort must be a string, for example low")
    return {} if effort is None else {"reasoning_effort": effort}


def _logprobs(body: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    included = body.get("include", [])
    ignored += [f"include.{name}" for name in included if name != _LOGPROBS]
    if _LOGPROBS not in included and not body.get("top_logprobs"):
        return {}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)}

"""Anthropic's Messages API: its request body as a chat for the engines. Pure functions.

Fields as in Anthropic's API reference. Its defaults hold too: without `thinking` a model does not think."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from trilithon.engines.base import Feature
from trilithon.serve.openai.bodies import LONGEST_NAME, StopWords, chat_body
from trilithon.serve.openai.extensions import RESIDENCE, Residence
from trilithon.serve.validation import MOST_MESSAGES, MOST_TOOLS, Rules, validate, wrong

__all__ = ["CountBody", "MessageAsked", "MessageBody", "message_asked"]


class CountBody(Residence):
    """What a prompt is made of."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None


class MessageBody(CountBody):
    """A request to `/v1/messages`."""

    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    stop_sequences: StopWords | None = None


_SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed", "min_p")
_READ_HERE = frozenset({"model"}) | RESIDENCE
_RULES = Rules(
    passed=frozenset(MessageBody.model_fields) - _READ_HERE | set(_SAME),
    neutral={"container": (), "fallbacks": ([],), "mcp_servers": ([],)},
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAsked:
    """`chat` is the engine's body, streamed. `thinks` is whether thinking was asked for."""

    chat: dict[str, Any]
    needs: frozenset[Feature]
    ignored: tuple[str, ...]
    thinks: bool


def message_asked(fields: Mapping[str, Any]) -> MessageAsked:
    """Raises Problem, naming the field."""
    admitted = validate({name: value for name, value in fields.items() if name not in _READ_HERE}, _RULES)
    body, ignored = admitted.body, set(admitted.ignored)
    messages = _system(body.get("system"), ignored)
    for at, message in enumerate(body["messages"]):
        messages += _messages(message, f"messages.{at}", ignored)
    chat: dict[str, Any] = {"messages": messages, "stream": True}
    chat |= {name: body[name] for name in _SAME if name in body}
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    chat |= _tools(body, ignored) | _thinking(body.get("thinking"), ignored) | _output(body, ignored)
    chat_request, needs = chat_body(chat)
    if "stop" in chat:  # only where it is asked to say more does an engine tell which of the words ended the answer
        chat_request.body["verbose"] = True
    thinks = bool(chat_request.body["chat_template_kwargs"].get("enable_thinking"))
    return MessageAsked(
        chat=chat_request.body, needs=needs, ignored=(*sorted(ignored), *chat_request.ignored), thinks=thinks
    )


def _system(system: Any, ignored: set[str]) -> list[dict[str, Any]]:
    if system is None or isinstance(system, str):
        return [{"role": "system", "content": system}] if system else []
    texts = [_text(block, f"system.{at}", ignored) for at, block in enumerate(system)]
    return [{"role": "system", "content": "\n\n".join(texts)}] if texts else []


def _text(block: Any, where: str, ignored: set[str]) -> str:
    if not isinstance(block, Mapping) or block.get("type") != "text" or not isinstance(block.get("text"), str):
        raise wrong(where, f'{where} must be a text block: {{"type": "text", "text": …}}')
    _note_extras(block, ("type", "text"), ignored)
    return str(block["text"])


def _note_extras(block: Mapping[str, Any], known: Sequence[str], ignored: set[str]) -> None:
    """What a block says besides its content: how long to cache it, what is cited; prefixes are cached here anyway."""
    ignored.update(name for name, value in block.items() if name not in known and value is not None)


def _messages(message: Mapping[str, Any], where: str, ignored: set[str]) -> list[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise wrong(f"{where}.role", f"{where}.role must be user or assistant")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise wrong(f"{where}.content", f"{where}.content must be a string or a list of blocks")
    blocks = [(block, f"{where}.content.{at}") for at, block in enumerate(content)]
    for block, place in blocks:
        if not isinstance(block, Mapping):
            raise wrong(place, f"{place} must be a block: an object with a type")
    return [_assistant(blocks, ignored)] if role == "assistant" else _user(str(role), blocks, ignored)


_Blocks = Sequence[tuple[Mapping[str, Any], str]]


def _user(role: str, blocks: _Blocks, ignored: set[str]) -> list[dict[str, Any]]:
    """What tools answered comes first, each as a message of its own; then what the user says."""
    results, parts = [], []
    for block, where in blocks:
        match block.get("type"):
            case "tool_result":
                results.append(_result(block, where, ignored))
            case "text":
                parts.append({"type": "text", "text": _text(block, where, ignored)})
            case "document":
                parts.append({"type": "text", "text": _document(block, where, ignored)})
            case "image":
                parts.append(_image(block, where, ignored))
            case other:
                raise wrong(where, f"{where}: blocks of type {str(other)[:40]} are not supported in a user message")
    if not parts:
        return results or [{"role": role, "content": ""}]
    if all(part["type"] == "text" for part in parts):
        return [*results, {"role": role, "content": "\n\n".join(part["text"] for part in parts)}]
    return [*results, {"role": role, "content": parts}]


def _result(block: Mapping[str, Any], where: str, ignored: set[str]) -> dict[str, Any]:
    content = block.get("content")
    _note_extras(block, ("type", "tool_use_id", "content", "is_error"), ignored)
    if isinstance(content, list):
        content = "\n".join(
            _text_or_document(part, f"{where}.content.{position}", ignored) for position, part in enumerate(content)
        )
    if content is not None and not isinstance(content, str):
        raise wrong(f"{where}.content", f"{where}.content must be a string or a list of text blocks")
    # A chat has no field for it, and the model should know.
    failed = "Error: " if block.get("is_error") else ""
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": failed + (content or "")}


def _text_or_document(block: Any, where: str, ignored: set[str]) -> str:
    is_document = isinstance(block, Mapping) and block.get("type") == "document"
    return _document(block, where, ignored) if is_document else _text(block, where, ignored)


def _document(block: Mapping[str, Any], where: str, ignored: set[str]) -> str:
    """A document of plain text, after its title and what the client says about it. Raises ApiError for a PDF."""
    source = block.get("source")
    _note_extras(block, ("type", "source", "title", "context"), ignored)
    kind = source.get("type") if isinstance(source, Mapping) else None
    content = (
        source.get({"text": "data", "content": "content"}.get(str(kind), "")) if isinstance(source, Mapping) else None
    )
    if isinstance(content, list):
        content = "\n\n".join(_text(part, f"{where}.source.content.{at}", ignored) for at, part in enumerate(content))
    if not isinstance(content, str):
        raise wrong(f"{where}.source", f"{where}: only documents of text are supported; send a source of the type text")
    return "\n\n".join([*(str(block[name]) for name in ("title", "context") if block.get(name)), content])


def _image(block: Mapping[str, Any], where: str, ignored: set[str]) -> dict[str, Any]:
    source = block.get("source")
    _note_extras(block, ("type", "source"), ignored)
    if not isinstance(source, Mapping):
        source = {}
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        url = source["url"]
    elif source.get("type") == "base64" and isinstance(source.get("data"), str):
        url = f"data:image/png;base64,{source['data']}"  # which kind it is, its bytes say
    else:
        raise wrong(f"{where}.source", f"{where}.source must be of the type base64, with media_type and data")
    return {"type": "image_url", "image_url": {"url": url}}


def _assistant(blocks: _Blocks, ignored: set[str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, where in blocks:
        match block.get("type"):
            case "text":
                texts.append(_text(block, where, ignored))
            case "thinking":
                thoughts.append(str(block.get("thinking", "")))
            case "redacted_thinking":
                ignored.add("redacted_thinking")
            case "tool_use":
                calls.append(_use(block, where, ignored))
            case other:
                raise wrong(
                    where, f"{where}: blocks of type {str(other)[:40]} are not supported in an assistant message"
                )
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _use(block: Mapping[str, Any], where: str, ignored: set[str]) -> dict[str, Any]:
    _note_extras(block, ("type", "id", "name", "input", "caller"), ignored)
    name, given = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise wrong(where, f"{where}: a tool_use needs a name, and an object as input")
    function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _tools(body: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    """Tools with a type of their own are run by Anthropic's servers, or known to its models alone: `offer_tools` leaves
    them out."""
    tools = [_tool(tool, ignored) for tool in body.get("tools", [])]
    fields: dict[str, Any] = {"tools": tools} if tools else {}
    choice = body.get("tool_choice")
    if choice is None or not tools:
        return fields
    if choice.get("disable_parallel_tool_use") is not None:
        fields["parallel_tool_calls"] = not choice["disable_parallel_tool_use"]
    if choice.get("type") == "tool":
        return fields | {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    if choice.get("type") not in tuple(_CHOICES):  # a list cannot be looked up
        raise wrong("tool_choice", f"tool_choice.type must be one of {', '.join(_CHOICES)}, tool")
    return fields | {"tool_choice": _CHOICES[choice["type"]]}


def _tool(tool: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    if tool.get("type") not in ("custom", None):
        return {"type": tool["type"]}
    _note_extras(tool, ("type", "name", "description", "input_schema", "strict"), ignored)
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _thinking(given: Mapping[str, Any] | None, ignored: set[str]) -> dict[str, Any]:
    thinking = given or {"type": "disabled"}
    kind = thinking.get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise wrong("thinking", "thinking.type must be enabled, disabled or adaptive")
    ignored.update(f"thinking.{name}" for name in thinking if name not in ("type", "budget_tokens"))
    budget = thinking.get("budget_tokens")
    if budget is not None and (type(budget) is not int or budget < 0):
        raise wrong("thinking.budget_tokens", "thinking.budget_tokens must be a number of tokens")
    words: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": kind != "disabled"}}
    return words | ({"thinking_budget_tokens": budget} if budget is not None and kind == "enabled" else {})


def _output(body: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    """`output_config`: how much effort, and the form of the answer, which was `output_format` before."""
    wanted = body.get("output_config", {})
    ignored.update(f"output_config.{name}" for name in wanted if name not in ("effort", "format"))
    output: dict[str, Any] = {}
    if isinstance(wanted.get("effort"), str):
        output["reasoning_effort"] = wanted["effort"]
    where = "output_format" if wanted.get("format") is None else "output_config.format"
    form = body.get("output_format") if where == "output_format" else wanted["format"]
    if form is not None:
        if not isinstance(form, Mapping) or form.get("type") != "json_schema":
            raise wrong(where, f'{where} must be {{"type": "json_schema", "schema": …}}')
        named = {"name": "answer", "schema": form.get("schema"), "strict": True}
        output["response_format"] = {"type": "json_schema", "json_schema": named}
    return output

"""Tools of a chat and the calls of its earlier turns, in the form that every engine takes: functions, whose arguments
are the text of a JSON object.

A custom tool takes free text; engines know functions only, so it is offered as a function with one parameter. A tool
that OpenAI or Anthropic would run on their servers (`web_search`) is left out and named: clients send it with every
request."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from trilithon.serve.http.errors import ApiError
from trilithon.serve.validation import MOST_TOOLS, require_schema, require_sound, wrong

__all__ = ["INPUT", "call_arguments", "custom_input", "custom_names", "earlier_calls", "offer_tools"]

INPUT: Final = "input"
"""The one parameter of a custom tool that is offered as a function."""

_CHOICES = ("auto", "none", "required")


def custom_names(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the custom tools, in the form of chats or of the Responses API."""
    custom = (tool.get("custom") or tool for tool in tools if tool.get("type") == "custom")
    return frozenset(str(tool.get("name")) for tool in custom if isinstance(tool, Mapping))


def custom_input(arguments: str) -> str:
    """The text in the arguments of a function that stands for a custom tool; the arguments where they were cut off."""
    try:
        return str(json.loads(arguments)[INPUT])
    except (ValueError, LookupError, TypeError, RecursionError):
        return arguments


def offer_tools(body: dict[str, Any]) -> list[str]:
    """Replaces `tools` and `tool_choice` by what an engine takes, and returns the names of fields that are left out.

    A tool that is called for by its name is the only one that is offered, and one must be called: llama-server takes no
    name. Raises ApiError."""
    ignored: list[str] = []
    tools = _functions(body.get("tools") or [], ignored)
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(choice, tools)
    elif isinstance(choice, Mapping):
        tools, choice = [_chosen(choice, tools)], "required"
    elif choice is not None and choice not in _CHOICES:
        raise wrong("tool_choice", f"tool_choice must be one of {', '.join(_CHOICES)}, or name a tool")
    if choice == "required" and not tools:
        left_out = ", ".join(ignored)
        reason = f"{left_out} cannot run here; send functions too" if left_out else "there are none; send tools"
        raise wrong("tool_choice", f"tool_choice requires a tool, but {reason}")
    if choice == "none":  # a model that sees tools may write a call all the same
        tools = []
    for name in ("tools", "tool_choice") if tools else ("tools", "tool_choice", "parallel_tool_calls"):
        body.pop(name, None)
    if tools:
        body |= {"tools": tools} | ({} if choice is None else {"tool_choice": choice})
    return ignored


def _functions(tools: Sequence[Mapping[str, Any]], ignored: list[str]) -> list[dict[str, Any]]:
    functions = []
    for position, tool in enumerate(tools):
        where = f"tools.{position}"
        if tool.get("type") in ("function", "custom"):
            functions.append(_function(tool, where, ignored))
        elif isinstance(tool.get("type"), str):
            ignored.append(where)
        else:
            raise wrong(f"{where}.type", f"{where}.type is missing; write function or custom")
    return functions


def _allowed(choice: Mapping[str, Any], tools: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The subset of the tools that may be called now, and whether one must be."""
    entry = choice.get("allowed_tools")
    entries = entry.get("tools") if isinstance(entry, Mapping) else None
    mode = entry.get("mode", "auto") if isinstance(entry, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(entries, list):
        raise wrong("tool_choice", "tool_choice.allowed_tools must have mode, auto or required, and a list of tools")
    known = {tool["function"]["name"]: tool for tool in tools}
    names = [_name_in(allowed) for allowed in entries]
    for name in names:
        if name not in known:
            raise wrong("tool_choice", f"tool_choice.allowed_tools: {str(name)[:64]!r} is none of the tools")
    return [known[name] for name in dict.fromkeys(names) if name is not None], str(mode)


def _name_in(tool: Any) -> str | None:
    """Of a reference to a tool: {"type": "function", "function": {"name": …}}."""
    entry = tool.get(str(tool.get("type"))) if isinstance(tool, Mapping) else None
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else None


def _chosen(choice: Mapping[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    name = _name_in(choice)
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if choice.get("type") not in ("function", "custom"):
        kind = str(choice.get("type"))[:40]
        raise wrong("tool_choice", f"tool_choice: {kind} cannot run here; name a function, or write auto")
    if not named:
        raise wrong("tool_choice", 'tool_choice must name one of the tools: {"type": "function", "function": …}')
    return named[0]


def _function(tool: Mapping[str, Any], where: str, ignored: list[str]) -> dict[str, Any]:
    kind = tool["type"]
    entry = tool.get(kind)
    if not isinstance(entry, Mapping):
        raise wrong(where, f"{where}: a tool of type {kind} has an object {kind} with a name")
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        raise wrong(where, f"{where}: a {'function' if kind == 'function' else 'custom tool'} has a name")
    if kind == "custom":
        return {"type": "function", "function": _of_custom(entry, where, ignored)}
    if entry.get("parameters") is not None:
        require_schema(entry["parameters"], f"{where}.function.parameters")
    return dict(tool)


def _of_custom(entry: Mapping[str, Any], where: str, ignored: list[str]) -> dict[str, Any]:
    """A grammar of its input cannot be held inside of a JSON string; the model reads it in the description."""
    description = str(entry.get("description") or "")
    form = entry.get("format")
    if isinstance(form, Mapping) and form.get("type") == "grammar":
        ignored.append(f"{where}.format")
        grammar = form.get("grammar") if isinstance(form.get("grammar"), Mapping) else form
        assert isinstance(grammar, Mapping)
        description += f"\nThe input follows this {grammar.get('syntax', '')} grammar:\n{grammar.get('definition', '')}"
    parameters = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    return {"name": entry["name"], "description": description.strip(), "parameters": parameters}


def earlier_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an earlier turn. Raises ApiError for what is no call."""
    if not isinstance(calls, list) or len(calls) > MOST_TOOLS:
        raise wrong(f"{where}.tool_calls", f"{where}.tool_calls must be a list of {MOST_TOOLS} calls at most")
    return [_earlier_call(call, f"{where}.tool_calls.{position}") for position, call in enumerate(calls)]


def _earlier_call(call: Any, where: str) -> dict[str, Any]:
    kind = "custom" if isinstance(call, Mapping) and call.get("type") == "custom" else "function"
    entry = call.get(kind) if isinstance(call, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise wrong(where, f"{where}: a call has an object {kind} with a name")
    if kind == "custom":
        function = {"name": entry["name"], "arguments": json.dumps({INPUT: str(entry.get("input") or "")})}
    else:
        function = {**entry, "arguments": call_arguments(entry.get("arguments"))}
    rest = {name: value for name, value in call.items() if name != "custom"}
    return {**rest, "type": "function", "function": function}


def call_arguments(arguments: Any) -> str:
    """The text of a JSON object, which is all that every chat template can render. Nothing is `{}`: OpenAI streams it
    for a tool without parameters. What is no JSON object (a call that the limit of tokens cut off) is kept as a text
    in one: refused, it would end the conversation, since clients send it again with every turn."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    value = _parsed(arguments) if isinstance(arguments, str) else arguments
    if isinstance(value, Mapping) and _is_sound(value):
        return arguments if isinstance(arguments, str) else json.dumps(value)
    return json.dumps({"invalid_json": arguments if isinstance(arguments, str) else json.dumps(arguments)})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_sound(value: Any) -> bool:
    try:
        require_sound(value)
    except ApiError:
        return False
    return True

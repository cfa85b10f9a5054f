"""Answers of a form, as an engine takes them: a schema that its grammar holds, and a tool call that it cannot avoid.

llama.cpp's grammar of chats drops keywords of a schema without a word, and with `tool_choice` "required" it lets a
model write any text before the call (ggml-org/llama.cpp issue 27217). So every keyword is looked at first, llguidance
is used where a build has it and the schema needs it, and a forced call is an answer by the schemas of the tools."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trilithon.engines.base import Placement
from trilithon.serve.forms.answer_form import AnswerForm
from trilithon.serve.forms.keywords import Grammar, first_unheld, for_llguidance
from trilithon.serve.forms.validation import AnswerSchema
from trilithon.serve.validation import wrong

__all__ = ["Constrained", "constrained", "is_free"]

_CHAT = "/v1/chat/completions"
_GENERATING = (_CHAT, "/completion", "/infill")
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
# A space after a separator, as texts that models learn from have it; and no other, which a model may repeat for ever.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained:
    """`body` is what the engine gets, `form` what is done with its answer. `ignored` are keywords of tools' parameters
    that the model sees and no grammar holds."""

    body: Mapping[str, Any]
    form: AnswerForm | None = None
    ignored: tuple[str, ...] = ()


def is_free(path: str, body: Mapping[str, Any], custom: frozenset[str]) -> bool:
    """Whether there is no schema and no tool: then `constrained`, which takes a thread, would change nothing."""
    fields = {name: body[name] for name in ("response_format", "json_schema") if body.get(name)}
    return path not in _GENERATING or not (custom or _tools(path, body) or _source(path, fields))


def constrained(
    path: str, body: Mapping[str, Any], placement: Placement, custom: frozenset[str] = frozenset()
) -> Constrained:
    """For a request that is not free. `custom` are the names of custom tools, where the client knows such. Raises
    ApiError, naming the keyword, for a schema that nothing here holds."""
    try:
        return _constrained(path, body, placement, custom)
    except RecursionError as error:
        raise wrong("", "the references of a schema lead too deep; write the schemas in their places") from error


def _constrained(path: str, body: Mapping[str, Any], placement: Placement, custom: frozenset[str]) -> Constrained:
    tools = _tools(path, body)
    if tools and body.get("tool_choice") == "required":
        return _forced(body, placement, custom)
    ignored = _check_tools(tools)
    source = _source(path, body)
    if source is None:
        return Constrained(body=body, form=AnswerForm(custom=custom) if custom else None, ignored=ignored)
    where, schema = source
    answer_schema = AnswerSchema(schema, where)
    grammar = _grammar(answer_schema, path, body, placement)
    form = AnswerForm(schema=answer_schema, custom=custom)
    return Constrained(body=_held_body(body, schema, grammar), form=form, ignored=ignored)


def _tools(path: str, body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return body.get("tools") or () if path == _CHAT else ()  # engines pass over them elsewhere


def _source(path: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The schema of the answer, and which field of the body has it."""
    form = body.get("response_format") or {} if path == _CHAT else {}
    named = form.get("json_schema") or {}
    for where, schema in (
        ("response_format.json_schema.schema", named.get("schema") if form.get("type") == "json_schema" else None),
        ("response_format.schema", form.get("schema") if form.get("type") == "json_object" else None),
        ("json_schema", body.get("json_schema")),
    ):
        if isinstance(schema, Mapping):
            return where, schema or {"type": "object"}  # llama-server's meaning of an empty one
    return None


def _grammar(schema: AnswerSchema, path: str, body: Mapping[str, Any], placement: Placement) -> Grammar:
    """The one that holds the schema: the engine's own, whose answers may begin with thoughts, before llguidance's."""
    has_llguidance = _has_llguidance(placement)
    unheld = first_unheld(schema.schema, "chat")
    if not unheld and not (path != _CHAT and has_llguidance):
        return "chat"
    advice = "leave it out"
    if has_llguidance and not _thinks(path, body, placement):
        unheld = first_unheld(schema.schema, "llguidance")
        if not unheld:
            return "llguidance"
    elif has_llguidance and not first_unheld(schema.schema, "llguidance"):
        advice = "leave it out, or switch thinking off (reasoning_effort none)"
    keyword = unheld.rpartition("/")[2] if "/" in unheld else "a boolean schema"
    where = schema.where + unheld.removeprefix("#").replace("/", ".")
    raise wrong(where, f"{schema.where}: {placement.name} cannot hold {keyword} at {unheld}; {advice}")


def _has_llguidance(placement: Placement) -> bool:
    """llama.cpp tells llguidance the bytes of each token without a leading space where the tokenizer puts one before
    every text (llama_sampler_llg_new_tokenizer in llguidance.cpp of b11549), and the grammar ends in an error."""
    return "llguidance" in placement.build.features and not placement.file.space_prefix


def _thinks(path: str, body: Mapping[str, Any], placement: Placement) -> bool:
    """Whether the answer may begin with thoughts, which llguidance's grammar of an answer does not allow."""
    if path != _CHAT or "thinking" not in placement.file.capabilities:
        return False
    return (body.get("chat_template_kwargs") or {}).get("enable_thinking") is not False


def _held_body(body: Mapping[str, Any], schema: Mapping[str, Any], grammar: Grammar) -> Mapping[str, Any]:
    if grammar == "chat":
        return body
    rest = {name: value for name, value in body.items() if name not in ("response_format", "json_schema")}
    text = json.dumps({"x-guidance": _COMPACT, **for_llguidance(schema)})
    return {**rest, "grammar": f"%llguidance {{}}\nstart: %json {text}"}


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keywords of parameters that no grammar holds. Raises ApiError for one of a tool that is strict. A tool that
    is not strict shows its parameters to the model, as OpenAI defines it, and its calls may break them."""
    ignored = []
    for position, tool in enumerate(tools):
        function = tool["function"]
        unheld = first_unheld(function.get("parameters") or _NO_PARAMETERS, "chat")
        if not unheld:
            continue
        where = f"tools.{position}.function.parameters" + unheld.removeprefix("#").replace("/", ".")
        if function.get("strict"):
            keyword = unheld.rpartition("/")[2]
            raise wrong(where, f"{where}: {keyword} cannot be held in a tool call; leave it out, or leave out strict")
        ignored.append(where)
    return tuple(ignored)


def _forced(body: Mapping[str, Any], placement: Placement, custom: frozenset[str]) -> Constrained:
    """An object with the name of a tool and its arguments, which becomes a call. The tools stay in the prompt."""
    schema = _calls_schema(body["tools"])
    answer_schema: AnswerSchema | None = AnswerSchema(schema, "tools")
    exact = _has_llguidance(placement) and not _thinks(_CHAT, body, placement)
    grammar: Grammar = "llguidance" if exact and not first_unheld(schema, "llguidance") else "chat"
    ignored = () if grammar == "llguidance" else _check_tools(body["tools"])
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema, "strict": True}}
    asked = {name: value for name, value in body.items() if name not in ("json_schema", "grammar")}
    asked |= {"tool_choice": "none", "response_format": form}
    return Constrained(
        body=_held_body(asked, schema, grammar),
        form=AnswerForm(schema=None if ignored else answer_schema, forced=True, custom=custom),
        ignored=ignored,
    )


def _calls_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = []
    for position, tool in enumerate(tools):
        function = tool["function"]
        place = "#/properties/arguments" if len(tools) == 1 else f"#/anyOf/{position}/properties/arguments"
        properties = {
            "name": {"const": function["name"]},
            "arguments": _moved(function.get("parameters") or _NO_PARAMETERS, place),
        }
        required = ["name", "arguments"]
        call = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        calls.append(call)
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _moved(schema: Any, place: str) -> Any:
    """A copy for another place in a document: references begin at its root."""
    if isinstance(schema, list):
        return [_moved(inner, place) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: place + value.removeprefix("#")
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if name in ("const", "enum", "default", "examples")
        else {inner_name: _moved(inner, place) for inner_name, inner in value.items()}
        if name in _OF_NAMES and isinstance(value, Mapping)  # a property may be called "default"
        else _moved(value, place)
        for name, value in schema.items()
        if name not in ("$schema", "$id")
    }

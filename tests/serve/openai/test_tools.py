"""Tools of every kind that clients send, and calls of earlier turns however broken, in all dialects."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from live_server import Serve
from tool_template import TOOL_TEMPLATE

from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.anthropic.bodies import message_asked
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.bodies import chat_body
from trilithon.serve.openai.responses_bodies import response_asked
from trilithon.serve.openai.tools import call_arguments, custom_names, offer_tools

FUNCTION = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "edits"}}
USER = [{"role": "user", "content": "hi"}]


def test_a_subset_of_the_tools_may_be_allowed() -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
        chat, _ = chat_body({"messages": USER, "tools": [CUSTOM, FUNCTION], "tool_choice": choice})
        assert (chat.body["tools"], chat.body["tool_choice"]) == ([FUNCTION], mode)
        flat = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "clock"}]}
        tools = [{"type": "function", **FUNCTION["function"]}, {"type": "custom", "name": "patch"}]  # type: ignore[dict-item]
        asked = response_asked({"model": "m", "input": "hi", "tools": tools, "tool_choice": flat})
        assert ([tool["function"]["name"] for tool in asked.chat["tools"]], asked.chat["tool_choice"]) == (
            ["clock"],
            mode,
        )
    for entry in (
        {"mode": "any", "tools": []},
        {"mode": "auto"},
        None,
        {"mode": "auto", "tools": [{"type": "function"}]},
    ):
        with pytest.raises(ApiError, match="allowed_tools"):
            offer_tools({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "allowed_tools": entry}})


def test_a_tool_that_is_called_for_goes_before_the_form_of_a_text() -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    flat = {"type": "function", **FUNCTION["function"]}  # type: ignore[dict-item]
    fields = {"model": "m", "input": "hi", "tools": [flat], "text": {"format": form}}
    forced = response_asked({**fields, "tool_choice": {"type": "function", "name": "clock"}})
    assert (forced.chat["tool_choice"], "response_format" in forced.chat) == ("required", False)
    assert "response_format" in response_asked(fields).chat


# The kinds of tools that Codex, OpenAI's and Anthropic's clients send beside their functions.
@pytest.mark.parametrize(
    "kind",
    [
        *("web_search", "web_search_preview_2025_03_11", "file_search", "code_interpreter", "image_generation", "mcp"),
        *("local_shell", "namespace", "tool_search", "computer_use_preview", "web_search_20250305", "bash_20250124"),
        *("text_editor_20250728", "memory_20250818", "code_execution_20250825", "computer_20250124"),
    ],
)
def test_a_tool_that_runs_elsewhere_is_left_out_and_named(kind: str) -> None:
    other = {"type": kind, "name": "n", "max_uses": 8}
    chat, _ = chat_body({"messages": USER, "tools": [FUNCTION, other], "tool_choice": "auto"})
    assert (chat.body["tools"], chat.ignored) == ([FUNCTION], ("tools.1",))
    flat = {"type": "function", **FUNCTION["function"]}  # type: ignore[dict-item]
    asked = response_asked({"model": "m", "input": "hi", "tools": [other, flat]})
    assert ([tool["function"]["name"] for tool in asked.chat["tools"]], asked.ignored) == (["clock"], ("tools.0",))
    body = {"model": "m", "max_tokens": 2, "messages": USER}
    clock = {"name": "clock", "input_schema": {"type": "object"}}
    message = message_asked({**body, "tools": [clock, other]})
    assert ([tool["function"]["name"] for tool in message.chat["tools"]], message.ignored) == (["clock"], ("tools.1",))
    alone = message_asked({**body, "tools": [other], "tool_choice": {"type": "auto"}})
    assert (alone.chat.get("tools"), alone.chat.get("tool_choice"), alone.ignored) == (None, None, ("tools.0",))


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([{"type": "web_search"}], "required", "tools.0 cannot run here"),
        ([{"type": "web_search"}, FUNCTION], {"type": "web_search"}, "web_search cannot run here"),
        ([{"type": "mcp"}, FUNCTION], {"type": "mcp", "server_label": "s"}, "mcp cannot run here"),
        ([FUNCTION], {"type": "function", "function": {"name": "other"}}, "must name one of the tools"),
        ([CUSTOM], {"type": "custom", "custom": "patch"}, "must name one of the tools"),
        ([{"function": {"name": "f"}}], "auto", "type is missing"),
        ([{"type": "custom", "custom": {"description": "no name"}}], "auto", "has a name"),
        ([{"type": "custom"}], "auto", "object custom"),
        ([], "required", "there are none"),
    ],
)
def test_a_choice_that_needs_such_a_tool_is_refused(tools: list[Any], choice: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        offer_tools({"tools": tools, "tool_choice": choice})
    assert raised.value.field.startswith("tool")


def test_a_custom_tool_is_offered_as_a_function_of_one_text() -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "x"'}}
    named = {"type": "custom", "custom": {"name": "patch"}}
    body: dict[str, Any] = {"tools": [FUNCTION, {"type": "custom", "custom": {**CUSTOM["custom"], "format": grammar}}]}  # type: ignore[dict-item]
    assert custom_names(body["tools"]) == {"patch"}
    body["tool_choice"] = named
    assert offer_tools(body) == ["tools.1.format"]
    function = body["tools"][0]["function"]
    assert (function["name"], function["parameters"]["required"]) == ("patch", ["input"])
    assert "edits" in function["description"] and 'start: "x"' in function["description"]
    flat = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "regex", "definition": "x+"}}
    asked = response_asked(
        {
            "model": "m",
            "tools": [flat],
            "tool_choice": {"type": "custom", "name": "patch"},
            "input": [
                {"role": "user", "content": "x"},
                {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "x"'},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
            ],
        }
    )
    assert custom_names([flat]) == {"patch"}
    assert "x+" in asked.chat["tools"][0]["function"]["description"]
    _, turn, output = asked.chat["messages"]
    assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == {"input": 'say "x"'}
    assert (output["role"], output["tool_call_id"], output["content"]) == ("tool", "c", "done")


BROKEN = [
    "",
    " \n",
    "{}",
    '{"city": "Par',
    "[1]",
    '"text"',
    "5",
    "null",
    "NaN",
    '{"a": 1e999}',
    '{"a": NaN}',
    "{'a': 1}",
]
BROKEN += ['{"a": "\\ud800"}', "[" * 3000, '{"a":' * 150 + "1" + "}" * 150, '{"a": 1} and more', "\x00", "\\"]


@given(st.text() | st.none() | st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
@example('{"city": "Par')
@example({"a": 1})
def test_arguments_become_an_object_that_keeps_what_was_said(arguments: Any) -> None:
    value = json.loads(call_arguments(arguments))
    assert isinstance(value, dict)
    if isinstance(arguments, str) and arguments.strip() and "invalid_json" in value:
        assert value["invalid_json"] == arguments


def test_arguments_that_are_an_object_go_on_as_they_are() -> None:
    assert call_arguments('{"a":  1.50}') == '{"a":  1.50}'
    assert [call_arguments(nothing) for nothing in ("", None, "\n")] == ["{}"] * 3
    assert json.loads(call_arguments({"a": [1]})) == {"a": [1]}


def test_no_history_of_calls_ends_a_conversation(serve: Serve, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", template=TOOL_TEMPLATE, context=16384)
    server = serve(model, placement="llama.cpp@embedded/cpu")
    tools = [FUNCTION]
    for arguments in [*BROKEN, None, {"a": 1}]:
        call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        turns = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
        turns += [{"role": "tool", "tool_call_id": "a", "content": "r"}]
        body = {"model": "m", "max_tokens": 1, "messages": turns, "tools": tools}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, (arguments, answer.text)
        if isinstance(arguments, dict):
            continue
        items = [
            {"type": "function_call", "call_id": "c", "name": "clock", "arguments": arguments},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ]
        body = {"model": "m", "max_output_tokens": 1, "input": [*USER, *items]}
        answer = server.http.post("/v1/responses", json=body)
        assert answer.status_code == 200, (arguments, answer.text)


def test_documents_of_text_are_read_and_others_named() -> None:
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "the text"}}
    blocks = {
        "type": "document",
        "title": "T",
        "source": {"type": "content", "content": [{"type": "text", "text": "b"}]},
    }
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text]}
    body = {"model": "m", "max_tokens": 1}
    asked = message_asked({**body, "messages": [{"role": "user", "content": [result, text, blocks]}]})
    assert [turn["content"] for turn in asked.chat["messages"]] == ["the text", "the text\n\nT\n\nb"]
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "eA=="}}
    with pytest.raises(ApiError, match="only documents of text") as raised:
        message_asked({**body, "messages": [{"role": "user", "content": [pdf]}]})
    assert raised.value.field == "messages.0.content.0.source"


@pytest.mark.parametrize(
    ("url", "text"),
    [("data:text/plain;base64,0L/RgNC40LLQtdGC", "привет"), ("data:text/markdown,a%20b", "a b"),
     ("data:application/pdf;base64,eA==", None), ("data:text/plain;base64,%%%", None), (None, None)],
)  # fmt: skip
def test_files_of_text_are_read_and_others_named(url: Any, text: str | None) -> None:
    part = {"type": "input_file", "filename": "f.txt", "file_data": url}
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    if text is None:
        with pytest.raises(ApiError, match="text"):
            response_asked(body)
    else:
        (turn,) = response_asked(body).chat["messages"]
        assert turn["content"][0]["text"] == f"f.txt\n\n{text}"

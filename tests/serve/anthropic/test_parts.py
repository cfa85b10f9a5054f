"""Anthropic's messages, both ways, without a server: blocks in, events out."""

import json
from typing import Any, get_args

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from trilithon.engines.wire.messages import Timings
from trilithon.serve.anthropic.bodies import message_asked
from trilithon.serve.anthropic.events import MessageWriter
from trilithon.serve.generation import End, Piece
from trilithon.serve.http.errors import ApiError

TIMINGS = Timings(cache_n=3, prompt_n=4, prompt_ms=1.0, predicted_n=5, predicted_ms=2.0)
EVENTS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(RawMessageStreamEvent)[0])
}
USER = [{"role": "user", "content": "hi"}]


def call(index: int, arguments: str, name: str = "") -> dict[str, Any]:
    return {"index": index, "id": f"c{index}", "function": {"name": name or None, "arguments": arguments}}


PIECES = st.lists(
    st.builds(
        Piece,
        text=st.text(max_size=3),
        reasoning=st.text(max_size=3),
        tool_calls=st.lists(st.builds(call, st.integers(0, 2), st.text(max_size=4), st.just("clock")), max_size=2),
    ),
    max_size=12,
)


def written(
    pieces: list[Piece], end: End, stops: list[str] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    writer = MessageWriter(model="m", stops=stops or [])
    sent = [json.dumps(event) for event in writer.opening()]
    for piece in pieces:
        sent += [json.dumps(event) for event in writer.feed(piece)]
    sent += [json.dumps(event) for event in writer.close(end, {"decode_unit": "cpu"})]
    return [json.loads(event) for event in sent], writer.message


@settings(deadline=None)  # the client's own models are built when they are first used
@given(PIECES, st.sampled_from(["stop", "length", "tool_calls"]))
def test_the_stream_says_what_the_whole_says(pieces: list[Piece], reason: str) -> None:
    events, message = written(pieces, End(reason=reason, timings=TIMINGS))
    Message.model_validate(message)
    blocks: list[dict[str, Any]] = []
    open_block = None
    for event in events:
        EVENTS[event["type"]].model_validate(event)
        if event["type"] == "content_block_start":
            assert (open_block, event["index"]) == (None, len(blocks))
            open_block = event["index"]
            blocks.append({**event["content_block"], "input": ""})
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_block
            delta = event["delta"]
            name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "input"}[delta["type"]]
            blocks[-1][name] += delta.get(name, delta.get("partial_json"))
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
    assert open_block is None
    assert [block["type"] for block in blocks] == [block["type"] for block in message["content"]]
    for sent, whole in zip(blocks, message["content"], strict=True):
        if whole["type"] != "tool_use":
            assert sent[whole["type"]] == whole[whole["type"]]
    assert "".join(block["text"] for block in message["content"] if block["type"] == "text") == "".join(
        piece.text for piece in pieces
    )
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"]


def test_a_call_becomes_an_input() -> None:
    pieces = [Piece(text="so"), Piece(tool_calls=[call(0, '{"zone":', "clock")]), Piece(tool_calls=[call(0, '"UTC"}')])]
    _, message = written(pieces, End(reason="tool_calls", timings=TIMINGS))
    assert message["content"][1] == {"type": "tool_use", "id": "c0", "name": "clock", "input": {"zone": "UTC"}}
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {
        "input_tokens": 4,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "output_tokens": 5,
    }


def test_only_the_clients_own_stop_sequences_are_told() -> None:
    _, message = written([Piece(text="a")], End(reason="stop", stop_word="END"), ["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    _, message = written([Piece(text="a")], End(reason="stop", stop_word="\n\n"), ["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


# -- the way in


def test_a_conversation_with_tools_and_thoughts() -> None:
    asked = message_asked(
        {
            "model": "m",
            "max_tokens": 9,
            "system": [
                {"type": "text", "text": "one"},
                {"type": "text", "text": "two", "cache_control": {"type": "x"}},
            ],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "what time?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "look", "signature": ""},
                        {"type": "text", "text": "let me see"},
                        {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "well?"},
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
                        {"type": "tool_result", "tool_use_id": "t2", "content": "no such clock", "is_error": True},
                    ],
                },
            ],
            "tools": [{"name": "clock", "description": "tells", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 100},
            "stop_sequences": ["END"],
            "metadata": {"user_id": "me"},
        }
    )
    system, user, assistant, noon, failed, well = asked.chat["messages"]
    assert system["content"] == "one\n\ntwo"
    assert user == {"role": "user", "content": "what time?"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("let me see", "look")
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"zone": "UTC"}
    assert (noon["role"], noon["tool_call_id"], noon["content"]) == ("tool", "t1", "noon")
    assert failed["content"] == "Error: no such clock"
    assert well == {"role": "user", "content": "well?"}
    assert asked.chat["tool_choice"] == "required"
    assert asked.chat["parallel_tool_calls"] is False
    assert asked.chat["chat_template_kwargs"] == {"enable_thinking": True}
    assert asked.chat["thinking_budget_tokens"] == 100
    assert asked.chat["stop"] == ["END"]
    assert asked.thinks
    assert asked.needs == {"grammar"}
    assert set(asked.ignored) == {"cache_control", "metadata"}


def test_without_a_word_of_thinking_there_is_none() -> None:
    asked = message_asked({"max_tokens": 1, "messages": USER})
    assert asked.chat["chat_template_kwargs"] == {"enable_thinking": False}
    assert not asked.thinks


def test_images_are_data_urls() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    asked = message_asked({"max_tokens": 1, "messages": [{"role": "user", "content": content}]})
    assert asked.needs == {"vision"}
    assert asked.chat["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"


def test_a_form_is_held() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    asked = message_asked({"max_tokens": 1, "messages": USER, "output_config": {"format": form, "effort": "low"}})
    assert asked.chat["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert asked.chat["reasoning_effort"] == "low"
    assert asked.needs == {"grammar"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mcp_servers", [{"url": "x"}]),
        ("container", "c"),
        ("tools", [{"type": 5, "name": "bash"}]),
        ("thinking", {"type": "perhaps"}),
        ("seed", "x"),
        ("messages", [{"role": "user", "content": [{"type": "document"}]}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "x"}}]}]),
        ("output_config", {"format": {"type": "xml"}}),
    ],
)
def test_what_cannot_be_honoured_is_named(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as raised:
        message_asked({"max_tokens": 1, "messages": USER, field: value})
    assert raised.value.field.startswith(field)
    assert raised.value.status == 400


KEYS = st.sampled_from(
    ["type", "role", "content", "text", "name", "input", "id", "source", "tool_use_id", "thinking", "data", "url"]
)
WORDS = st.sampled_from(
    ["text", "image", "tool_use", "tool_result", "thinking", "user", "assistant", "base64", "enabled"]
)
ANYTHING = st.recursive(
    st.none() | st.integers(-2, 2) | WORDS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=5),
    max_leaves=12,
)


@settings(deadline=None)  # the client's own models are built when they are first used
@given(
    st.lists(st.dictionaries(KEYS, ANYTHING, max_size=4), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["type", "name", "format", "effort", "budget_tokens", "display"]), ANYTHING),
)
def test_whatever_comes_it_is_taken_or_refused(messages: list[dict[str, Any]], more: dict[str, Any]) -> None:
    for fields in ({"thinking": more}, {"output_config": more}, {"tools": messages, "tool_choice": more}):
        try:
            asked = message_asked({"max_tokens": 1, "messages": messages, "system": messages, **fields})
        except ApiError as problem:
            assert problem.status == 400
            continue
        json.dumps(asked.chat)

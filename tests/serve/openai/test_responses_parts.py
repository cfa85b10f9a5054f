"""OpenAI's Responses API, both ways, without a server: conversations in, numbered events out."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import End, Piece
from trilithon.serve.http.errors import ApiError
from trilithon.serve.openai.responses_bodies import response_asked
from trilithon.serve.openai.responses_events import ResponseWriter

TIMINGS = Timings(cache_n=3, prompt_n=4, prompt_ms=1.0, predicted_n=5, predicted_ms=2.0)
EVENTS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}

CALLS = st.builds(
    lambda index, named, arguments: {
        "index": index,
        **({"id": f"call_{index}"} if named else {}),
        "function": {"name": "clock" if named else None, "arguments": arguments},
    },
    st.integers(0, 2),
    st.booleans(),
    st.text(max_size=4),
)
PIECES = st.lists(
    st.builds(Piece, text=st.text(max_size=3), reasoning=st.text(max_size=3), tool_calls=st.lists(CALLS, max_size=2)),
    max_size=12,
)


def written(pieces: list[Piece], end: End) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events as they are when they are sent, and the whole."""
    settings = response_asked({"model": "m", "input": "hi"}).settings
    writer = ResponseWriter(model="m", created=1, settings=settings, custom=frozenset({"patch"}))
    sent: list[str] = [json.dumps(event) for event in writer.opening()]
    for piece in pieces:
        sent += [json.dumps(event) for event in writer.feed(piece)]
    sent += [json.dumps(event) for event in writer.close(end, {"decode_unit": "cpu"})]
    return [json.loads(event) for event in sent], writer.response


@settings(deadline=None)  # the client's own models are built when they are first used
@given(PIECES, st.sampled_from(["stop", "length", "tool_calls"]))
def test_the_stream_says_what_the_whole_says(pieces: list[Piece], reason: str) -> None:
    events, response = written(pieces, End(reason=reason, timings=TIMINGS))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == response
    assert events[-1]["type"] == ("response.incomplete" if reason == "length" else "response.completed")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    for kind, part in (("output_text", "message"), ("reasoning_text", "reasoning")):
        deltas = "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")
        assert deltas == "".join(item["content"][0]["text"] for item in done if item["type"] == part)
    assert "".join(item["content"][0]["text"] for item in done if item["type"] == "message") == "".join(
        piece.text for piece in pieces
    )
    arguments = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(event["delta"] for event in arguments) == "".join(
        item["arguments"] for item in done if item["type"] == "function_call"
    )


@settings(deadline=None)  # the client's own models are built when they are first used
@given(PIECES)
def test_the_client_knows_every_event(pieces: list[Piece]) -> None:
    events, response = written(pieces, End(reason="stop", timings=TIMINGS))
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    Response.model_validate(response)


def test_tokens_agree() -> None:
    _, response = written([Piece(reasoning="hm"), Piece(text="a")], End(reason="stop", timings=TIMINGS))
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 12,
    }


def test_what_broke_off_says_so() -> None:
    writer = ResponseWriter(model="m", created=1, settings={})
    writer.feed(Piece(text="half"))
    *_, last = writer.failed(ApiError("it died", status=502))
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "it died"
    assert last["response"]["output"][0]["status"] == "incomplete"


# -- the way in


def test_a_conversation_with_a_call() -> None:
    asked = response_asked(
        {
            "model": "m",
            "instructions": "be short",
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "what time"}, {"type": "input_text", "text": "?"}],
                },
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "look"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]},
                {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "noon"},
            ],
            "tools": [{"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": True}],
            "tool_choice": {"type": "function", "name": "clock"},
            "max_output_tokens": 9,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "store": True,
        }
    )
    system, user, assistant, tool = asked.chat["messages"]
    assert system == {"role": "system", "content": "be short"}
    assert user["content"] == "what time?"
    assert (assistant["content"], assistant["reasoning_content"]) == ("let me see", "look")
    assert [call["id"] for call in assistant["tool_calls"]] == ["c1", "c2"]
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "noon"}
    assert asked.chat["tools"][0]["function"]["name"] == "clock"
    assert asked.chat["tool_choice"] == "required"
    assert asked.chat["max_tokens"] == 9
    assert "response_format" not in asked.chat  # that of a text, and the answer is a call
    assert asked.chat["reasoning_effort"] == "low"
    assert asked.chat["stream"] is True
    assert asked.needs == {"grammar"}
    assert set(asked.ignored) == {"reasoning.summary"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversation", "conv_1"),
        ("background", True),
        ("prompt", {"id": "p"}),
        ("truncation", "auto"),
        ("tools", [{"name": "no type"}]),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]),
        ("text", {"format": "json"}),
        ("seed", "x"),
        ("tool_choice", {"type": "allowed_tools", "tools": 5}),
    ],
)
def test_what_cannot_be_honoured_is_named(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as raised:
        response_asked({"model": "m", "input": "hi", field: value})
    assert raised.value.field.startswith(field)
    assert raised.value.status == 400


ANYTHING = st.recursive(
    st.none() | st.integers(-2, 2) | st.text(max_size=4) | st.sampled_from(["message", "function_call", "reasoning"]),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "arguments", "output", "summary", "call_id"]),
            each,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)  # the client's own models are built when they are first used
@given(
    st.lists(st.dictionaries(st.sampled_from(["type", "role", "content", "output", "summary"]), ANYTHING), max_size=3),
    st.dictionaries(st.sampled_from(["effort", "summary", "format", "verbosity", "type"]), ANYTHING),
)
def test_whatever_comes_it_is_taken_or_refused(items: list[dict[str, Any]], more: dict[str, Any]) -> None:
    try:
        asked = response_asked({"input": items, "text": more, "reasoning": more})
    except ApiError as problem:
        assert problem.status == 400
        return
    json.dumps(asked.chat)
    json.dumps(asked.settings)


@pytest.mark.parametrize("arguments", ['{"input": "x\\ny"}', '{"input": "cut', "[]"])
def test_the_client_knows_a_custom_call(arguments: str) -> None:
    halves = [arguments[:4], arguments[4:]]
    calls = [
        {"index": 0, "function": {"name": "patch" if at == 0 else None, "arguments": half}}
        for at, half in enumerate(halves)
    ]
    events, response = written([Piece(tool_calls=[call]) for call in calls], End(reason="tool_calls", timings=TIMINGS))
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    (item,) = Response.model_validate(response).output
    assert item.type == "custom_tool_call"
    assert item.input == ("x\ny" if arguments.endswith("}") else arguments)

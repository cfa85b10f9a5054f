"""The lines of an answer: pieces, whole tool calls, counts and durations that agree."""

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.wire.messages import Timings
from trilithon.serve.generation import End, Piece
from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.answers import STREAM, LineWriter, chat_wrapped, durations, generate_wrapped, timestamp

TIMINGS = Timings(cache_n=10, prompt_n=3, prompt_ms=1.5, predicted_n=4, predicted_ms=2.25)


def test_times_have_nanoseconds_and_their_zone() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000000Z"
    assert timestamp(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"


@given(st.integers(0, 2**62))
def test_any_time_is_rfc_3339(at_ns: int) -> None:
    text = timestamp(at_ns)
    assert len(text) == 30
    datetime.fromisoformat(text[:26] + "+00:00")


def test_what_was_evaluated_is_what_was_timed() -> None:
    found = durations(TIMINGS, total_ns=9_000_000, load_seconds=0.5)
    assert found == {
        "total_duration": 9_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 3,
        "prompt_cached_count": 10,
        "prompt_eval_duration": 1_500_000,
        "eval_count": 4,
        "eval_duration": 2_250_000,
    }
    assert "load_duration" not in durations(None, total_ns=1, load_seconds=0)


def test_pieces_are_lines_and_the_last_one_ends() -> None:
    writer = LineWriter("m", generate_wrapped)
    (thought,), (text,) = list(writer.piece(Piece(reasoning="hm"))), list(writer.piece(Piece(text="hi")))
    assert (thought["thinking"], thought["response"], thought["done"]) == ("hm", "", False)
    assert "thinking" not in text
    (last,) = writer.end(End(reason="length"), {"eval_count": 1})
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 1)
    whole = writer.gathered([thought, text, last])
    assert (whole["thinking"], whole["response"], whole["done"]) == ("hm", "hi", True)


@given(st.data())
def test_calls_come_whole_however_they_were_cut(data: st.DataObject) -> None:
    values = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8), max_size=3)
    wanted = data.draw(st.lists(values, min_size=1, max_size=3))
    writer, calls = LineWriter("m", chat_wrapped), []
    for number, arguments in enumerate(wanted):
        text = json.dumps(arguments)
        cut = data.draw(st.integers(0, len(text)))
        deltas = [
            {"index": number, "id": f"id{number}", "function": {"name": "f", "arguments": ""}},
            {"index": number, "function": {"arguments": text[:cut]}},
            {"index": number, "function": {"arguments": text[cut:]}},
        ]
        for delta in deltas:
            for body in writer.piece(Piece(tool_calls=[delta])):
                calls += body["message"]["tool_calls"]
    *rest, last = writer.end(End(reason="tool_calls"), {})
    calls += [call for body in rest for call in body["message"]["tool_calls"]]
    assert [call["function"]["arguments"] for call in calls] == wanted
    assert [call["id"] for call in calls] == [f"id{number}" for number in range(len(wanted))]
    assert [call["function"]["index"] for call in calls] == list(range(len(wanted)))
    assert last["done_reason"] == "stop"


def test_a_call_that_was_cut_off_is_told_as_text() -> None:
    writer = LineWriter("m", chat_wrapped)
    delta = {"index": 0, "function": {"name": "add", "arguments": '{"a": '}}
    assert list(writer.piece(Piece(tool_calls=[delta]))) == []
    text, last = writer.end(End(reason="length"), {})
    assert text["message"]["content"] == 'add {"a": '
    assert last["done_reason"] == "length"


@pytest.mark.parametrize(("top", "expected"), [(None, None), (0, 0), (1, 1), (2, 2)])
def test_as_many_alternatives_as_asked(top: int | None, expected: int | None) -> None:
    alternative = {"token": "b", "logprob": None, "bytes": None}
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [alternative] * 5}
    (body,) = LineWriter("m", generate_wrapped, top).piece(Piece(text="a", logprobs=[entry]))
    if expected is None:
        assert "logprobs" not in body
        return
    (told,) = body["logprobs"]
    assert (told["token"], told["logprob"], told["bytes"]) == ("a", -0.5, [97])
    assert len(told.get("top_logprobs", [])) == expected
    json.dumps(body, allow_nan=False)


def test_an_error_in_the_middle_is_a_line_of_its_own() -> None:
    assert json.loads(STREAM.broken(ApiError("it died", status=502))) == {"error": "it died"}

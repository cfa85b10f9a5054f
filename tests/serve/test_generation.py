"""An engine's stream as pieces, however the network cuts it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import EngineError
from trilithon.serve.generation import AnswerReader, End, Piece

TIMINGS = {"cache_n": 3, "prompt_n": 5, "prompt_ms": 10.0, "predicted_n": 2, "predicted_ms": 4.0}


def sse(*messages: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in messages) + b"data: [DONE]\n\n"


def chat(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


CALL = {"index": 0, "id": "call_1", "function": {"name": "add", "arguments": '{"a"'}}
CHAT = sse(
    chat({"role": "assistant", "content": None}),
    chat({"reasoning_content": "hm"}),
    chat({"content": "two stönes"}),
    chat({"tool_calls": [CALL]}),
    chat({}, "tool_calls", timings=TIMINGS),
)


def read(content: bytes, cuts: list[int]) -> tuple[list[Piece], End]:
    reader, pieces, begin = AnswerReader(), [], 0
    for cut in [*sorted(cuts), len(content)]:
        pieces += reader.feed(content[begin:cut])
        begin = max(begin, cut)
    return pieces, reader.end()


@given(st.lists(st.integers(0, len(CHAT)), max_size=12))
def test_a_chat_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    pieces, end = read(CHAT, cuts)
    assert [(each.reasoning, each.text) for each in pieces] == [("hm", ""), ("", "two stönes"), ("", "")]
    assert pieces[-1].tool_calls == [CALL]
    assert end.reason == "tool_calls"
    assert end.timings is not None
    assert (end.timings.cache_n, end.timings.prompt_n) == (3, 5)


def test_a_completion_says_what_ended_it() -> None:
    last = {"content": "", "stop": True, "stop_type": "word", "stopping_word": "END", "timings": TIMINGS}
    pieces, end = read(sse({"content": "a", "stop": False}, last), [])
    assert (pieces, end.reason, end.stop_word) == ([Piece(text="a")], "stop", "END")
    _, end = read(sse(last | {"stop_type": "limit"}), [])
    assert end.reason == "length"


@pytest.mark.parametrize(
    "content",
    [
        b'data: {"error": {"message": "too hot", "code": 500}}\n\n',
        b'error: {"code": 500, "message": "too hot", "type": "server_error"}\n\n',
    ],
)
def test_an_error_in_the_middle_is_the_engines_words(content: bytes) -> None:
    with pytest.raises(EngineError, match="too hot"):
        AnswerReader().feed(content)


@pytest.mark.parametrize("content", [b"data: nonsense\n", b"data: [1]\n"])
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(EngineError):
        AnswerReader().feed(content)


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    reader = AnswerReader()
    reader.feed(sse(chat({"content": "a"})))
    with pytest.raises(EngineError, match="interrupted"):
        reader.end()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        AnswerReader().feed(content)
    except EngineError as error:
        assert error.status == 502

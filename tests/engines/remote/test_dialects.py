"""Answers of servers in other forms than their API's: an error of the request, never of the campaign."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from trilithon.engines.remote.asking import Api
from trilithon.engines.remote.dialects import dialect_of
from trilithon.engines.wire.messages import Chat, Completion, Timings

CHAT = Chat(messages=[("user", "hello")], max_tokens=5, stop=["."])


def read(api: Api, request: Chat | Completion, content: bytes, piece_bytes: int = 7) -> list[dict[str, Any]]:
    """The events of an answer that arrives in pieces."""

    async def ask(path: str, body: Mapping[str, Any]) -> bytes:
        raise AssertionError

    translation = asyncio.run(dialect_of(api, "m", None).translation(request.path, request.body(stream=True), ask))
    assert translation.body is not None
    assert translation.body["model"] == "m"
    translator = translation.translator
    assert translator is not None
    pieces = [content[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)]
    lines = b"".join([translator.feed(piece, is_stream=True) for piece in pieces] + [translator.finish()]).split(b"\n")
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line]


@pytest.mark.parametrize(
    "content",
    [
        b'{"choices": 5}',
        b'{"choices": ["x"]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"usage": {"prompt_tokens_details": "x"}}',
        b'{"broken": ',
        b'{"a":' * 5000,
        b'{"error": "out of memory"}',
        b'{"error": {"message": "out of memory"}}',
    ],
)
def test_another_form_is_an_error_of_the_request(content: bytes) -> None:
    events = read("OpenAI API", CHAT, b"data: " + content + b"\n\n", 1000)
    assert [list(event) for event in events] == [["error"]]


@pytest.mark.parametrize("content", [b'{"message": "x"}', b'{"message": {"content": "a"}, "done": true, "x": \xff}'])
def test_of_ollama_too(content: bytes) -> None:
    assert [list(event) for event in read("Ollama", CHAT, content)] == [["error"]]


@pytest.mark.parametrize("amount", ["-5", "1e999", "NaN", "true", '"7"', "null", "1" + "0" * 30])
def test_what_is_no_amount_is_none(amount: str) -> None:
    line = f'{{"response": "a", "done": true, "eval_count": {amount}, "eval_duration": {amount}}}'
    last = read("Ollama", Completion(prompt="x", max_tokens=3), line.encode())[-1]
    assert Timings.parse(last["timings"]) == Timings(0, 0, 0.0, 0, 0.0)


@pytest.mark.parametrize("piece_bytes", [1, 5, 1000])
def test_thinking_is_separated_wherever_the_text_is_cut(piece_bytes: int) -> None:
    words = ["<thi", "nk>why", " not</thi", "nk>\n\nyes", " of course"]
    lines = [json.dumps({"message": {"content": word}}) for word in words]
    lines += ['{"message": {"content": ""}, "done": true, "done_reason": "length"}']
    events = read("RKLLAMA", CHAT, "\n".join(lines).encode(), piece_bytes)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "why not"
    assert "".join(delta.get("content", "") for delta in deltas) == "yes of course"
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_a_whole_answer_instead_of_a_stream() -> None:
    content = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 4}}'
    text, end = read("OpenAI API", CHAT, content)
    assert text["choices"][0]["delta"] == {"content": "yes"}
    assert end["timings"]["prompt_n"] == 4


def test_an_answer_without_an_end_has_no_reason() -> None:
    (event,) = read("Ollama", CHAT, b'{"message": {"content": "yes"}}')
    assert "finish_reason" not in event["choices"][0]

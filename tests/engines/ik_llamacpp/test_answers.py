"""Answers of ik_llama.cpp's server, event by event, however they are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.ik_llamacpp.answers import AnswerTranslator, ChatAnswers, CompletionAnswers, slots_translated
from trilithon.errors import EngineError

TIMINGS = {"prompt_n": 5, "prompt_ms": 2.0, "predicted_n": 4, "predicted_ms": 6.0, "n_past": 9, "n_ctx": 512}
USAGE = {"completion_tokens": 4, "prompt_tokens": 7, "total_tokens": 11}


def chunk(delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"object": "chat.completion.chunk", "choices": choices, **more}


def stream(*bodies: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies) + b"data: [DONE]\n\n"


def through(request: dict[str, Any], content: bytes, size: int = 1 << 20) -> list[dict[str, Any]]:
    translator = AnswerTranslator(ChatAnswers(request))
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    passed = b"".join(translator.feed(part, is_stream=True) for part in parts) + translator.finish()
    assert passed.endswith(b"data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in passed.split(b"\n\n") if line.startswith(b"data: {")]


def said(events: list[dict[str, Any]]) -> tuple[str, list[str]]:
    choices = [choice for event in events for choice in event["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices), reasons


@given(st.lists(st.text("ab#: ", max_size=4), max_size=8), st.integers(1, 40), st.booleans(), st.booleans())
def test_the_beginning_of_a_stop_string_is_held_back(pieces: list[str], size: int, limited: bool, usage: bool) -> None:
    """As the server sends it: the text up to the stop string, and what it sent of that before it knew."""
    request = {"stop": ["#a:"], "max_tokens": 4 if limited else 100}
    events = [chunk({"content": piece}, usage=USAGE) for piece in pieces]
    last = (
        [chunk({}, "stop"), chunk(None, usage=USAGE, timings=TIMINGS)]
        if usage
        else [chunk({}, "stop", timings=TIMINGS)]
    )
    passed = through(request, stream(chunk({"role": "assistant"}, usage=USAGE), *events, *last), size)
    text, reasons = said(passed)
    whole, stopped, _ = "".join(pieces).partition("#a:")
    assert reasons == ["length" if limited else "stop"]
    assert text == (whole if stopped or limited else whole.removesuffix("#a").removesuffix("#"))
    assert [event["timings"]["cache_n"] for event in passed if "timings" in event] == [2]
    assert [event["usage"]["prompt_tokens"] for event in passed if "usage" in event] == [7] * usage


def test_the_end_of_a_completion() -> None:
    plain = {"content": "x", "stop": True, "tokens_evaluated": 7, "timings": TIMINGS, "stopping_word": "w"}
    ends = [{f"stopped_{kind}": kind == end for kind in ("eos", "word", "limit")} for end in ("eos", "word", "limit")]
    translated = [CompletionAnswers({})(plain | end)[0] for end in ends]
    assert [body["stop_type"] for body in translated] == ["eos", "word", "limit"]
    assert {body["timings"]["cache_n"] for body in translated} == {2}
    assert not any(name.startswith("stopped") for body in translated for name in body)


def test_a_full_context_is_a_limit() -> None:
    full = TIMINGS | {"n_past": 512}
    whole = chunk({}, "stop", timings=full)
    assert ChatAnswers({"max_tokens": 100})(whole)[0]["choices"][0]["finish_reason"] == "length"


def test_slots() -> None:
    slot = {"id": 0, "state": 1, "next_token": {"n_decoded": 3}}
    assert slots_translated([slot, slot | {"state": 0}])[0] == [
        slot | {"is_processing": True, "next_token": [{"n_decoded": 3}]},
        slot | {"state": 0, "is_processing": False, "next_token": [{"n_decoded": 3}]},
    ]


def test_errors_pass_and_another_form_is_an_error() -> None:
    error = {"error": {"message": "no", "code": 500}}
    translator = AnswerTranslator(ChatAnswers({}))
    assert json.loads(translator.feed(stream(error), is_stream=True).split(b"\n\n")[0][6:]) == error
    for content in (b"[1]", b"{}", b"not JSON"):
        translator = AnswerTranslator(CompletionAnswers({"n_probs": 1}) if content == b"[1]" else ChatAnswers({}))
        translator.feed(content, is_stream=False)
        with pytest.raises(EngineError, match="another form than that of ik_llama"):
            translator.finish()
    gathering = AnswerTranslator(ChatAnswers({}), ChatAnswers.gathered)
    gathering.feed(stream(chunk({"content": "x"}, usage=USAGE), error), is_stream=True)
    with pytest.raises(EngineError, match="the engine failed: no"):
        gathering.finish()

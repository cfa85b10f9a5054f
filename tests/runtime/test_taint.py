"""The log that is watched while a request runs, and the bytes that are held back."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import EngineError, TaintedAnswer
from trilithon.runtime.taint import AnswerGuard, ErrorWatch

ERROR = "E RKNN: [17:19:34.670] failed to submit!, op id: 0, op name: MatMul, flags: 0x5\n"
LINE = "E RKNN: failed to submit!, op id: 0, op name: MatMul, flags: 0x5"


def append(log: Path, text: str | bytes) -> None:
    with log.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def sse(*bodies: dict[str, Any] | str) -> bytes:
    return "".join(f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n" for body in bodies).encode()


def chat(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}


CHAT = sse(chat("on"), chat('"error": e'), chat("e"), chat("", "stop"), "[DONE]")
COMPLETION = sse({"content": "one", "stop": False}, {"content": "", "stop": True, "timings": {}})


def test_only_what_is_printed_in_the_block_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, ERROR)
    with ErrorWatch(log) as watch:
        append(log, "main: all is well\nW RKNN: [17:19:34.670] a warning\n")
        watch.check()
        append(log, b"\xff\xfe" + b"x" * 200_000 + b"\n" + ERROR.encode() + b"x" * 200_000)
        assert watch.error == LINE
        with pytest.raises(TaintedAnswer, match="failed to submit!"):
            watch.check()
    append(log, ERROR)
    assert watch.error == LINE


def test_an_error_at_the_very_end_of_the_block_is_seen_after_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, "")
    with ErrorWatch(log) as watch:
        append(log, ERROR[:-1])
    assert watch.error == LINE


def test_without_a_log_there_are_no_errors(tmp_path: Path) -> None:
    for log in (None, tmp_path / "none"):
        with ErrorWatch(log) as watch:
            watch.check()


@given(st.text(alphabet="E RKP:[].\n1", max_size=40), st.integers(0, 200))
def test_the_pieces_of_a_log_do_not_matter(tmp_path_factory: pytest.TempPathFactory, noise: str, at: int) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    append(log, "")
    whole = f"{noise}\n{ERROR}{noise}"
    with ErrorWatch(log) as watch:
        append(log, whole[:at])
        _ = watch.error  # a look that comes in the middle of a line
        append(log, whole[at:])
        assert watch.error == LINE


def passed(content: bytes, cuts: list[int], watch: ErrorWatch, *, is_stream: bool = True) -> tuple[bytes, AnswerGuard]:
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    guard, result = AnswerGuard(watch), b""
    for start, end in itertools.pairwise(places):
        result += guard.passed(content[start:end], is_stream=is_stream, is_last=end == len(content))
    return result, guard


@given(st.sampled_from([CHAT, COMPLETION, CHAT[:-1], b"data: x"]), st.lists(st.integers(0, 1000), max_size=9))
def test_a_good_answer_passes_whole(content: bytes, cuts: list[int]) -> None:
    result, guard = passed(content, cuts, ErrorWatch(None))
    assert result == content
    guard.check()
    assert passed(content, cuts, ErrorWatch(None), is_stream=False)[0] == content


@given(st.sampled_from([CHAT, COMPLETION]), st.lists(st.integers(0, 1000), max_size=9))
def test_of_a_tainted_stream_all_but_its_end_passes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    append(log, "")
    with ErrorWatch(log) as watch:
        append(log, ERROR)
        result, guard = passed(content, cuts, watch)
        end = (
            b'data: {"choices": [{"index": 0, "delta": {"content": ""}' if content is CHAT else b'data: {"content": ""'
        )
        assert result == content[: content.index(end)]
        with pytest.raises(TaintedAnswer):
            guard.check()
        assert passed(content, cuts, watch, is_stream=False)[0] == b""


@given(st.lists(st.integers(0, 1000), max_size=9), st.sampled_from(["data: ", "error: "]))
def test_an_error_event_is_raised_and_not_passed_on(cuts: list[int], field: str) -> None:
    """A dialect says it in its own form."""
    error = field + json.dumps({"error": {"code": 503, "message": "no room", "type": "unavailable_error"}})
    start = sse(chat("one"))
    result, guard = passed(start + error.encode() + b"\n\n" + CHAT, cuts, ErrorWatch(None))
    assert result == start
    with pytest.raises(EngineError, match="no room"):
        guard.check()

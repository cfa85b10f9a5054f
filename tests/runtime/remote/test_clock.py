"""Durations that a server states, compared with the client's clock."""

import pytest

from trilithon.engines.wire.messages import Timings
from trilithon.runtime.remote.clock import Arrivals, held_against_clock, is_plausible

STREAMED = Arrivals(first_ms=2000, stream_ms=5000, total_ms=7000, pieces=128)
BURST = Arrivals(first_ms=6990, stream_ms=5, total_ms=7000, pieces=128)
STATED = Timings(cache_n=0, prompt_n=512, prompt_ms=1900, predicted_n=129, predicted_ms=5050)


@pytest.mark.parametrize(
    ("arrivals", "prompt_ms", "predicted_ms", "used", "notes"),
    [
        (STREAMED, 1900, 5050, (1900, 5050), []),
        (STREAMED, 700, 4000, (700, 4000), []),  # the template and the tokenizer took the rest
        (BURST, 1900, 5050, (1900, 5050), []),
        (STREAMED, 0.0019, 0.00505, (1900, 5050), ["prefill in milliseconds", "decode in milliseconds"]),
        (STREAMED, 1.9, 5.05, (1900, 5050), ["prefill in microseconds", "decode in microseconds"]),
        (STREAMED, 0, 0, (2000, 5000), ["prefill by the client's clock", "decode by the client's clock"]),
        (
            STREAMED,
            1900,
            2000,
            (1900, 5000),
            ["decode by the client's clock: the server states a duration that cannot"],
        ),
        (STREAMED, 4000, 5050, (2000, 5050), ["prefill by the client's clock: the server states a duration that"]),
        (STREAMED, 30, 5050, (2000, 5050), ["prefill by the client's clock"]),  # of a part that was not cached
        (BURST, 1900, 9000, (1900, 7000), ["decode by the client's clock"]),
    ],
)
def test_what_cannot_be_is_replaced_and_said(
    arrivals: Arrivals, prompt_ms: float, predicted_ms: float, used: tuple[float, float], notes: list[str]
) -> None:
    stated = Timings(0, 512, prompt_ms, 129, predicted_ms)
    timings, told = held_against_clock(stated, arrivals, 1.0)
    assert (timings.prompt_ms, timings.predicted_ms) == pytest.approx(used)
    assert (timings.prompt_n, timings.predicted_n) == (512, 129)
    assert len(told) == len(notes)
    for line, note in zip(told, notes, strict=True):
        for word in note.split(" in "):
            assert word in line


def test_a_way_of_many_milliseconds_is_no_fault_of_the_server() -> None:
    stated = Timings(0, 128, 50, 32, 300)
    far = Arrivals(first_ms=450, stream_ms=310, total_ms=760, pieces=32)
    assert held_against_clock(stated, far, 150.0) == (stated, ())
    assert held_against_clock(stated, far, 1.0)[1] != ()


def test_few_tokens_are_not_judged() -> None:
    stated = Timings(0, 20, 1, 3, 0.5)
    assert held_against_clock(stated, STREAMED, 1.0) == (stated, ())


@pytest.mark.parametrize(
    ("stated", "is_right"), [(980, True), (400, True), (1200, False), (100, False), (0.001, False)]
)
def test_the_whole_of_a_request(stated: float, is_right: bool) -> None:
    assert is_plausible(stated, 1000, 1.0) is is_right

"""What the servers that are written in Python have in common: fields of requests, figures of answers."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.wire.bodies import NUMBER_LIMIT, Totals, field_of, metrics_text, timings_body, usage_body
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Timings

COUNTS, TIMES = st.integers(0, 1 << 20), st.floats(0, 1e9)


@pytest.mark.parametrize(("value", "kind"), [(True, int), (True, float), ("1", int), (1.5, int), ([], str), (1, bool)])
def test_a_value_of_another_type_is_refused(value: object, kind: type) -> None:
    with pytest.raises(WireError, match=f"must be of type {kind.__name__}"):
        field_of({"x": value}, "x", kind, kind())


@given(st.integers())
def test_whole_numbers_are_numbers_of_any_size(value: int) -> None:
    found = field_of({"x": value}, "x", float, 0.5)
    assert found == value if abs(value) < NUMBER_LIMIT else math.isinf(found) and (found > 0) == (value > 0)


def test_numbers_that_no_float_holds_are_infinite() -> None:
    assert field_of({"x": -(10**400)}, "x", float, 0.5) == -math.inf
    assert field_of({"x": None}, "x", float, 0.5) == 0.5


@given(st.builds(Timings, cache_n=COUNTS, prompt_n=COUNTS, prompt_ms=TIMES, predicted_n=COUNTS, predicted_ms=TIMES))
def test_figures_of_any_answer_are_finite(timings: Timings) -> None:
    body = timings_body(timings)
    assert all(value >= 0 for value in body.values())
    assert Timings.parse(body) == timings
    assert usage_body(timings)["total_tokens"] == timings.cache_n + timings.prompt_n + timings.predicted_n


def test_the_rate_is_of_the_steps_between_tokens() -> None:
    body = timings_body(Timings(cache_n=0, prompt_n=10, prompt_ms=100.0, predicted_n=5, predicted_ms=400.0))
    assert (body["prompt_per_second"], body["predicted_per_second"], body["predicted_per_token_ms"]) == (100, 10, 100)


def test_guesses_are_told_where_there_were_any() -> None:
    timings = Timings(cache_n=0, prompt_n=1, prompt_ms=1.0, predicted_n=5, predicted_ms=4.0, draft_n=7)
    assert Timings.parse(timings_body(timings)) == timings
    assert timings_body(timings)["draft_n_accepted"] == 0
    assert "draft_n" not in timings_body(replace(timings, draft_n=0))


def test_metrics_add_up() -> None:
    totals = Totals()
    for _ in range(2):
        totals.add(Timings(cache_n=3, prompt_n=10, prompt_ms=100.0, predicted_n=5, predicted_ms=500.0))
    text = metrics_text(totals, processing=True, waiting=4)
    for line in ("prompt_tokens_total 20", "prompt_seconds_total 0.2", "n_tokens_max 17", "requests_deferred 4"):
        assert f"\nllamacpp:{line}\n" in text

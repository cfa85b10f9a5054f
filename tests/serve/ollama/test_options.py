"""Ollama's durations and options in the words of the pool and the engines."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.http.errors import ApiError
from trilithon.serve.ollama.options import keep_alive_seconds, sampling_of


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (None, None),
        ("", None),
        (0, 0.0),
        ("0", 0.0),
        (300, 300.0),
        (0.5, 0.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("1m30.5s", 90.5),
        ("+10s", 10.0),
        ("300", 300.0),
        (-1, math.inf),
        ("-1", math.inf),
        ("-1m", math.inf),
        (1e300, math.inf),
        ("99999999h", math.inf),
    ],
)
def test_how_long_a_model_stays(given_: float | str | None, seconds: float | None) -> None:
    found = keep_alive_seconds(given_)
    assert found == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("text", ["soon", "5 m", "m", "5x", "1h30", "--1", "1e3", "∞", "nan", "9" * 100])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="keep_alive") as caught:
        keep_alive_seconds(text)
    assert (caught.value.status, caught.value.field) == (400, "keep_alive")


@given(st.text(max_size=80) | st.floats(allow_nan=False) | st.integers())
def test_any_keep_alive_is_seconds_or_a_problem(value: float | str) -> None:
    try:
        found = keep_alive_seconds(value)
    except ApiError:
        return
    assert found is None or found >= 0


def test_defaults_are_ollamas() -> None:
    found = sampling_of(None, {})
    assert found.body == {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
    assert (found.most_tokens, found.context, found.ignored) == (-1, None, ())


def test_the_clients_word_goes_before_the_models() -> None:
    model = {"temperature": 0.2, "stop": ["<a>"], "num_ctx": 2048, "top_k": 5, "num_thread": 4}
    found = sampling_of({"temperature": 1, "stop": "<b>", "num_predict": 9}, model)
    assert found.body["temperature"] == 1.0
    assert found.body["stop"] == ["<b>"]
    assert found.body["top_k"] == 5
    assert (found.most_tokens, found.context, found.ignored) == (9, 2048, ())


def test_every_option_has_its_name() -> None:
    given_ = {"repeat_penalty": 1.2, "repeat_last_n": -1, "typical_p": 0.7, "mirostat": 2, "mirostat_tau": 4, "seed": 5}
    given_ |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "mirostat_eta": 0.3, "top_p": 0.5, "min_p": 0.1}
    body = sampling_of(given_, {}).body
    assert given_.items() <= body.items()


def test_a_seed_is_what_engines_can_take() -> None:
    assert "seed" not in sampling_of({"seed": -1}, {}).body
    assert sampling_of({"seed": 2**40 + 3}, {}).body["seed"] == 3
    assert sampling_of({"seed": -2}, {}).body["seed"] == 2**32 - 2


def test_what_means_nothing_is_named_and_nulls_are_nothing() -> None:
    found = sampling_of({"num_gpu": 1, "warp": {"a": 1}, "num_keep": 4, "top_k": None, "numa": None}, {})
    assert found.ignored == ("options.num_gpu", "options.warp", "options.num_keep")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 2},
        {"top_k": 1.5},
        {"num_ctx": 0},
        {"num_predict": True},
        {"stop": [1]},
        {"stop": [str(number) for number in range(65)]},
    ],
)
def test_a_value_that_does_not_fit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        sampling_of(options, {})
    assert caught.value.status == 400

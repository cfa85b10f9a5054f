from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.measure.metrics import HEADLINE, METRICS, metrics_of
from trilithon.measure.records import Sample, Test, TestKind

SECOND = 1_000_000_000


def sample(kind: TestKind, **fields: object) -> Sample:
    return Sample(**({"test": Test(kind=kind), "started_ns": 0, "finished_ns": 10 * SECOND} | fields))  # type: ignore[arg-type]


def test_prefill_and_decode_count_by_the_engines_clock() -> None:
    assert metrics_of(sample("pp", prompt_evaluated=512, prompt_ns=2 * SECOND)) == {"prefill_tokens_per_second": 256}
    assert metrics_of(sample("tg", decode_steps=128, decode_ns=4 * SECOND)) == {"decode_tokens_per_second": 32}


def test_prefill_and_decode_together() -> None:
    whole = sample("pg", prompt_evaluated=512, prompt_ns=SECOND, decode_steps=128, decode_ns=3 * SECOND)
    assert metrics_of(whole) == {"total_tokens_per_second": 160}
    fields = {"prompt_evaluated": 512, "prompt_ns": SECOND, "decode_steps": 128, "decode_ns": 3 * SECOND}
    for missing in fields:
        assert metrics_of(sample("pg", **(fields | {missing: None}))) == {}


@pytest.mark.parametrize("kind", ["pp", "tg", "pg", "cold"])
def test_what_is_not_known_is_left_out(kind: TestKind) -> None:
    assert metrics_of(sample(kind)) == {}
    assert metrics_of(sample(kind, prompt_evaluated=0, prompt_ns=0, decode_steps=0, decode_ns=0)) == {}


def test_question_with_thinking() -> None:
    asked = sample(
        "question",
        started_ns=SECOND,
        finished_ns=12 * SECOND,
        thinking_at_ns=(2 * SECOND, 3 * SECOND),
        answer_at_ns=(6 * SECOND, 8 * SECOND, 10 * SECOND),
        answer_text="Open research and safe models",
        decode_steps=90,
        decode_ns=9 * SECOND,
    )
    assert metrics_of(asked) == {
        "thinking_seconds": 5,
        "ttft_seconds": 1,
        "words": 5,
        "answer_seconds": 4,
        "words_per_second": 1.25,
        "tokens_per_second": 10,
        "total_seconds": 11,
    }


def test_question_without_thinking_waits_for_the_first_token() -> None:
    found = metrics_of(sample("question", answer_at_ns=(2 * SECOND, 4 * SECOND), answer_text="привет мир"))
    assert found["thinking_seconds"] == found["ttft_seconds"] == 2
    assert found["words_per_second"] == 1


def test_the_first_piece_counts_though_nothing_of_it_is_shown() -> None:
    marks = {"first_piece_at_ns": 2 * SECOND}
    found = metrics_of(sample("question", started_ns=SECOND, answer_at_ns=(4 * SECOND,), answer_text="a", marks=marks))
    assert (found["ttft_seconds"], found["thinking_seconds"]) == (1, 3)


def test_question_that_never_got_to_an_answer() -> None:
    found = metrics_of(sample("question", thinking_at_ns=(3 * SECOND,), thinking_text="hm"))
    assert found == {"ttft_seconds": 3, "total_seconds": 10}


def test_question_answered_in_one_piece_has_no_rate() -> None:
    found = metrics_of(sample("question", answer_at_ns=(SECOND,), answer_text="Yes."))
    assert found == {"thinking_seconds": 1, "ttft_seconds": 1, "words": 1, "total_seconds": 10}


def test_question_answered_with_no_word() -> None:
    found = metrics_of(sample("question", answer_at_ns=(SECOND, 2 * SECOND), answer_text="👍"))
    assert found["words"] == 0
    assert "words_per_second" not in found


def test_cold_start_shows_the_moments_it_has() -> None:
    found = metrics_of(sample("cold", marks={"load_cold_ns": 3 * SECOND, "first_request_ns": SECOND // 2}))
    assert found == {"load_cold_seconds": 3, "first_request_seconds": 0.5}
    found = metrics_of(sample("cold", marks={"load_warm_ns": 2 * SECOND, "cached_request_ns": SECOND // 4}))
    assert found == {"load_warm_seconds": 2, "cached_request_seconds": 0.25}


def test_more_is_better_of_rates_words_and_correct_answers_alone() -> None:
    for metric in (metric for metrics in METRICS.values() for metric in metrics):
        assert metric.higher_is_better == (metric.unit in ("tokens/s", "words/s", "words", "percent")), metric.name
        assert metric.name.endswith(("_per_second", "_seconds", "words", "answers"))


def test_every_kind_of_test_has_a_headline_among_its_metrics() -> None:
    assert set(METRICS) == set(HEADLINE) == set(get_args(TestKind))
    for kind, metrics in METRICS.items():
        names = [metric.name for metric in metrics]
        assert HEADLINE[kind] in names
        assert len(set(names)) == len(names)


@given(
    st.sampled_from(get_args(TestKind)),
    st.fixed_dictionaries(
        {
            name: st.none() | st.integers(0, 10**12)
            for name in ("prompt_evaluated", "prompt_ns", "decode_steps", "decode_ns")
        }
    ),
    st.lists(st.integers(0, 10 * SECOND), max_size=3).map(sorted),
    st.text(max_size=20),
)
def test_no_sample_breaks_its_metrics(
    kind: TestKind, counts: dict[str, int | None], arrivals: list[int], text: str
) -> None:
    found = metrics_of(sample(kind, **counts, answer_at_ns=tuple(arrivals), answer_text=text))
    assert set(found) <= {metric.name for metric in METRICS[kind]}
    assert all(value >= 0 for value in found.values())

"""Metrics of a sample, computed from its raw timestamps; None when a value that they need is missing."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from uniseg.wordbreak import words as segments

from trilithon.measure.records import Sample, TestKind

__all__ = [
    "HEADLINE",
    "METRICS",
    "Metric",
    "count_words",
    "decode_ceiling",
    "fraction_of_bandwidth",
    "metrics_of",
    "split_words",
]


@dataclass(frozen=True, slots=True)
class Metric:
    """`title` and `unit` are shown to users; `of` computes the value from a sample."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    of: Callable[[Sample], float | None]


def _rate(count: int | None, nanoseconds: int | None) -> float | None:
    return count / nanoseconds * 1e9 if count and nanoseconds else None


def _prefill_rate(sample: Sample) -> float | None:
    return _rate(sample.prompt_evaluated, sample.prompt_ns)


def _decode_rate(sample: Sample) -> float | None:
    return _rate(sample.decode_steps, sample.decode_ns)


def _total_rate(sample: Sample) -> float | None:
    if sample.prompt_evaluated is None or sample.decode_steps is None:
        return None
    if sample.prompt_ns is None or sample.decode_ns is None:
        return None
    return _rate(sample.prompt_evaluated + sample.decode_steps, sample.prompt_ns + sample.decode_ns)


def _ttft(sample: Sample) -> float | None:
    """Time to first token: the first piece of any kind, including white space and reasoning."""
    arrivals = [*sample.thinking_at_ns, *sample.answer_at_ns, *_first_piece(sample)]
    return (min(arrivals) - sample.started_ns) / 1e9 if arrivals else None


def _first_piece(sample: Sample) -> list[int]:
    return [sample.marks["first_piece_at_ns"]] if "first_piece_at_ns" in sample.marks else []


def _thinking(sample: Sample) -> float | None:
    """Time to the first visible word."""
    return (sample.answer_at_ns[0] - sample.started_ns) / 1e9 if sample.answer_at_ns else None


def _answer_seconds(sample: Sample) -> float | None:
    return (sample.answer_at_ns[-1] - sample.answer_at_ns[0]) / 1e9 if len(sample.answer_at_ns) > 1 else None


def _words(sample: Sample) -> float | None:
    return float(count_words(sample.answer_text)) if sample.answer_at_ns else None


def _words_per_second(sample: Sample) -> float | None:
    words, seconds = _words(sample), _answer_seconds(sample)
    return words / seconds if words and seconds else None


def _total_seconds(sample: Sample) -> float | None:
    return (sample.finished_ns - sample.started_ns) / 1e9


def _mark(name: str) -> Callable[[Sample], float | None]:
    def seconds(sample: Sample) -> float | None:
        return sample.marks[name] / 1e9 if name in sample.marks else None

    return seconds


_TOKENS, _SECONDS = "tokens/s", "s"

METRICS: Mapping[TestKind, tuple[Metric, ...]] = {
    "pp": (Metric("prefill_tokens_per_second", "Prefill", _TOKENS, True, _prefill_rate),),
    "tg": (Metric("decode_tokens_per_second", "Decode", _TOKENS, True, _decode_rate),),
    "pg": (Metric("total_tokens_per_second", "Prefill and decode", _TOKENS, True, _total_rate),),
    "question": (
        Metric("thinking_seconds", "Thinking (to the first visible word)", _SECONDS, False, _thinking),
        Metric("ttft_seconds", "Time to first token", _SECONDS, False, _ttft),
        Metric("words", "Words", "words", True, _words),
        Metric("answer_seconds", "Answer", _SECONDS, False, _answer_seconds),
        Metric("words_per_second", "Words per second", "words/s", True, _words_per_second),
        Metric("tokens_per_second", "Answer rate", _TOKENS, True, _decode_rate),
        Metric("total_seconds", "Total time", _SECONDS, False, _total_seconds),
    ),
    "cold": (
        Metric("load_cold_seconds", "Load, file on disk", _SECONDS, False, _mark("load_cold_ns")),
        Metric("load_warm_seconds", "Load, file in the page cache", _SECONDS, False, _mark("load_warm_ns")),
        Metric("first_request_seconds", "First request", _SECONDS, False, _mark("first_request_ns")),
        Metric("cached_request_seconds", "Request with a cached prefix", _SECONDS, False, _mark("cached_request_ns")),
    ),
    "questions": (Metric("correct_answers", "Correct answers", "percent", True, lambda _: None),),
}
"""The metrics of each kind of test, in the order in which they are shown."""

HEADLINE: Mapping[TestKind, str] = {
    "pp": "prefill_tokens_per_second",
    "tg": "decode_tokens_per_second",
    "pg": "total_tokens_per_second",
    "question": "words_per_second",
    "cold": "load_warm_seconds",
    "questions": "correct_answers",
}
"""The metric of each kind of test that the stopping rule and the verdict use."""


def metrics_of(sample: Sample) -> dict[str, float]:
    """The metrics of a sample that can be computed, by name."""
    values = {metric.name: metric.of(sample) for metric in METRICS[sample.test.kind]}
    return {name: value for name, value in values.items() if value is not None}


def decode_ceiling(bytes_per_token: float, bandwidth_bytes_per_second: float) -> float:
    """The limit in tokens per second, for one sequence without speculative decoding."""
    if bytes_per_token <= 0 or bandwidth_bytes_per_second <= 0:
        raise ValueError("bytes per token and bandwidth must be more than 0")
    return bandwidth_bytes_per_second / bytes_per_token


def fraction_of_bandwidth(
    decode_tokens_per_second: float, bytes_per_token: float, bandwidth_bytes_per_second: float
) -> float:
    """The fraction of the measured bandwidth that decode used. More than 1 means that weights were read from a cache,
    or that `bytes_per_token` counts bytes that this model does not read."""
    return decode_tokens_per_second / decode_ceiling(bytes_per_token, bandwidth_bytes_per_second)


def count_words(text: str) -> int:
    """Segments with a letter or a digit, by Unicode text segmentation (UAX #29). Chinese has one word per ideograph,
    since UAX #29 has no dictionary."""
    return len(split_words(text))


def split_words(text: str) -> list[str]:
    """The words that `count_words` counts."""
    return [word for word in segments(text) if any(unicodedata.category(char)[0] in "LN" for char in word)]

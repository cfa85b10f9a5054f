"""Figures, verdicts and steps in the reader's language; what only English has words for stays as it is."""

from collections.abc import Mapping
from typing import Any

from trilithon.measure.metrics import Metric
from trilithon.measure.records import Test
from trilithon.results.phrases import Phrases
from trilithon.units import format_number
from trilithon.web.quantities import number, quantity
from trilithon.web.results.listing import Figure
from trilithon.web.texts import Texts

__all__ = [
    "PagePhrases",
    "figure_text",
    "metric_title",
    "quality_title",
    "sentence",
    "step_text",
    "test_title",
    "unit_title",
]

_STEPS = {
    "waiting for an idle machine": "step_idle",
    "loading": "step_loading",
    "warming up": "step_warming",
    "cold start": "step_cold",
}


class PagePhrases(Phrases):
    """The sentences of `results`, with figures named as on the page around them."""

    def __init__(self, text: Texts):
        super().__init__(text.language)
        self._text = text

    def metric(self, metric: Metric) -> str:
        return metric_title(metric.name, self._text)

    def unit(self, metric: Metric) -> str:
        return unit_title(metric.unit, self._text)

    def test(self, test: Test) -> str:
        return test_title(test.name, self._text)


def metric_title(name: str, text: Texts) -> str:
    return text(f"results.metric_{name}")


def unit_title(unit: str, text: Texts) -> str:
    return text(f"units.{unit}")


def test_title(name: str, text: Texts) -> str:
    """llama-bench's names are the same everywhere."""
    return text(f"results.test_{name}") if name in ("question", "cold", "questions") else name


def quality_title(verdict: str, text: Texts) -> str:
    """Of what `table.quality_text` says, and of nothing."""
    return text(f"results.quality_{verdict if verdict.isalpha() else 'none'}")


def figure_text(figure: Figure, text: Texts) -> str:
    """ "52.1 tokens/s"."""
    return quantity(f"{format_number(figure.median)} {figure.metric.unit}", text)


def sentence(comparison: Mapping[str, Any], text: Texts) -> str:
    """Of a comparison as `calculations` gives it."""
    words = {
        "test": test_title(comparison["test"], text),
        "figure": metric_title(comparison["metric"], text),
        "answer": text(f"results.answer_{comparison['answer'].replace(' ', '_')}"),
    }
    if comparison["answer"] == "not comparable":
        return text("results.sentence_not_comparable", **words, reason=comparison["reason"])
    if comparison["ratio"] is None:
        return text("results.sentence_none", **words)
    ratio = number(f"{comparison['ratio']:.3f}", text)
    if comparison["low"] is None:
        return text("results.sentence_open", **words, ratio=ratio)
    low, high = (number(f"{comparison[name]:.3f}", text) for name in ("low", "high"))
    return text("results.sentence", **words, ratio=ratio, low=low, high=high)


def step_text(said: str, text: Texts) -> str:
    """What the bench says that it does now."""
    placement, _, doing = said.rpartition(": ")
    return text(f"results.{_STEPS[doing]}", placement=placement) if doing in _STEPS else said

"""The words for what is said of placements; what is said, and in which order, is the business of those who say it."""

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources

from trilithon.measure.metrics import Metric
from trilithon.measure.reasons import REASONS
from trilithon.measure.records import Test

__all__ = ["ENGLISH", "Phrases"]


class Phrases:
    """`phrases("tie", others=…)`, from the catalogue of the language beside this module; the English of a verdict's
    reasons stands where they are given. Raises KeyError for a key or a value that is not there, and FileNotFoundError
    for a language without a catalogue."""

    def __init__(self, language: str):
        self._known = _catalogue(language)

    def __call__(self, key: str, /, **values: object) -> str:
        return self._known[key].format(**values)

    def metric(self, metric: Metric) -> str:
        return metric.title

    def unit(self, metric: Metric) -> str:
        return metric.unit

    def test(self, test: Test) -> str:
        return test.name


@functools.cache
def _catalogue(language: str) -> Mapping[str, str]:
    file = resources.files(__package__) / f"phrases.{language}.toml"
    return REASONS | tomllib.loads(file.read_text(encoding="utf-8"))


ENGLISH = Phrases("en")

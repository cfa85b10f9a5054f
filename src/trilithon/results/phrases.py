"""The words for what is said of placements; what is said, and in which order, is the business of those who say it."""

import functools
import string
import tomllib
from collections.abc import Mapping
from importlib import resources

from trilithon.language import translated
from trilithon.measure.metrics import Metric
from trilithon.measure.reasons import REASONS
from trilithon.measure.records import Test

__all__ = ["ENGLISH", "Phrases"]


class Phrases(string.Formatter):
    """`phrases("tie", others=…)`, from the catalogue of the language beside this module; the English of a verdict's
    reasons stands where they are given. Raises KeyError for a key or a value that is not there, and FileNotFoundError
    for a language without a catalogue."""

    def __init__(self, language: str):
        self.language = language
        self._known = _catalogue(language)

    def __call__(self, key: str, /, **values: object) -> str:
        return self.vformat(self._known[key], (), values)

    def format_field(self, value: object, spec: str) -> str:
        """A float, and text with the format `number`, in the language's form."""
        if spec == "number":
            return self.number(str(value))
        text = format(value, spec)
        return self.number(text) if isinstance(value, float) else text

    def number(self, text: str) -> str:
        """A number as Python writes it ("23.5", "1.2–1.4", "45%") with the language's decimal mark and percent sign."""
        return text.replace(".", self._known["point"]).replace("%", self._known["percent"])

    def text(self, text: str) -> str:
        """A Message, in the language."""
        return translated(text, self.language)

    def metric(self, metric: Metric) -> str:
        return self.text(metric.title)

    def unit(self, metric: Metric) -> str:
        return self(f"in_{metric.unit.replace('/', '_per_')}")

    def test(self, test: Test) -> str:
        return self(f"test_{test.name}") if test.name in ("question", "cold", "questions") else test.name


@functools.cache
def _catalogue(language: str) -> Mapping[str, str]:
    file = resources.files(__package__) / f"phrases.{language}.toml"
    return REASONS | tomllib.loads(file.read_text(encoding="utf-8"))


ENGLISH = Phrases("en")

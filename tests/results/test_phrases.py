"""The catalogues of what is said of placements: alike in every language."""

import re
import string
import tomllib
from importlib import resources

import pytest

from trilithon.measure.reasons import REASONS
from trilithon.results.phrases import ENGLISH, Phrases

FILES = resources.files("trilithon.results")
OTHERS = sorted(
    {file.name.split(".")[1] for file in FILES.iterdir() if file.name.startswith("phrases.")} - {"en", "py"}
)


def catalogue(language: str) -> dict[str, str]:
    return tomllib.loads((FILES / f"phrases.{language}.toml").read_text(encoding="utf-8"))


def english() -> dict[str, str]:
    """Why a verdict is as it is stands in English where it is found out."""
    return catalogue("en") | REASONS


def values_of(phrase: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}


@pytest.mark.parametrize("language", OTHERS)
def test_every_language_has_the_same_phrases_with_the_same_values(language: str) -> None:
    known, other = english(), catalogue(language)
    assert known.keys() == other.keys()
    for key, phrase in other.items():
        assert values_of(phrase) == values_of(known[key]), key


def test_no_phrase_is_in_two_places() -> None:
    assert not catalogue("en").keys() & REASONS.keys()


NAMES = re.compile(r"\(p \{p:number\}\)|\b(?:CPU|GPU|NPU|Trilithon|pp512|tg128)\b")
"""What is not translated (docs/translating.md)."""


def test_no_english_word_is_left_in_russian() -> None:
    for key, phrase in catalogue("ru").items():
        literal = "".join(text for text, _, _, _ in string.Formatter().parse(NAMES.sub("", phrase)))
        assert not any(letter.isascii() and letter.isalpha() for letter in literal), key


def test_a_hole_is_a_fault() -> None:
    with pytest.raises(KeyError):
        ENGLISH("no such phrase")
    with pytest.raises(KeyError):
        ENGLISH("tie")
    with pytest.raises(FileNotFoundError):
        Phrases("xx")

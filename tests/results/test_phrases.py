"""The catalogues of what is said of placements: alike in every language."""

import string
import tomllib
from importlib import resources

import pytest

from trilithon.results.phrases import ENGLISH, Phrases


def catalogue(language: str) -> dict[str, str]:
    file = resources.files("trilithon.results") / f"phrases.{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def values_of(phrase: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}


def test_each_phrase_is_there_in_both_and_takes_nothing_that_the_other_does_not() -> None:
    english, russian = catalogue("en"), catalogue("ru")
    assert list(english) == list(russian)
    for key, phrase in russian.items():
        left_out = {"because"}  # in Russian the ratio and its interval are the reason
        assert values_of(phrase) == values_of(english[key]) or key in left_out, key


def test_no_english_word_is_left_in_russian() -> None:
    for key, phrase in catalogue("ru").items():
        literal = "".join(text for text, _, _, _ in string.Formatter().parse(phrase))
        assert not any(letter.isascii() and letter.isalpha() for letter in literal), key


def test_a_hole_is_a_fault() -> None:
    with pytest.raises(KeyError):
        ENGLISH("no such phrase")
    with pytest.raises(KeyError):
        ENGLISH("tie")
    with pytest.raises(FileNotFoundError):
        Phrases("xx")

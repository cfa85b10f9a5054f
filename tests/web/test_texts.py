"""The texts of the pages: every language is complete and has its own numbers, units and words."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from russian import english_in

import trilithon.web
from trilithon.web.quantities import clock, duration, number, percent, quantity, size
from trilithon.web.texts import LANGUAGES, language_of, texts_for

SOURCE = Path(trilithon.web.__file__).parent
ENGLISH = texts_for("en").known


@pytest.mark.parametrize("language", [each for each in LANGUAGES if each != "en"])
def test_every_language_says_the_same(language: str) -> None:
    other = texts_for(language).known
    assert set(other) == set(ENGLISH)
    for key, text in ENGLISH.items():
        assert _fields(other[key]) == _fields(text), key


def test_every_key_in_the_code_is_a_text() -> None:
    used = {
        key
        for path in SOURCE.rglob("*.py")
        if path.name != "texts.py"
        for key in re.findall(r'\btext\("([a-z]+\.[a-z_.]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(used) > 100
    assert used <= set(ENGLISH)


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        ("", "ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("", "de-DE,de;q=0.9,en;q=0.5,ru;q=0.4", "en"),
        ("en", "ru", "en"),
        ("xx", "ru", "ru"),
        ("", "", "en"),
        ("", "ru;q=0", "en"),
    ],
)
def test_the_language_follows_the_browser(chosen: str, accepted: str, language: str) -> None:
    found = language_of(chosen, accepted)
    assert found == language or (accepted == "ru;q=0" and found in LANGUAGES)


@given(st.text(), st.text())
def test_any_header_gives_a_language(chosen: str, accepted: str) -> None:
    assert language_of(chosen, accepted) in LANGUAGES


def test_no_english_is_left_in_the_russian_texts() -> None:
    left = {key: words for key, text in texts_for("ru").known.items() if (words := english_in(_literal(text)))}
    assert left == {}


@pytest.mark.parametrize("text", ["{rate} tokens/s", "занято 5 GiB", "0.35 s", "prefill 5 токен/с"])
def test_english_is_noticed(text: str) -> None:
    assert english_in(_literal(text))


def test_numbers_and_units_follow_the_language() -> None:
    russian, english = texts_for("ru"), texts_for("en")
    assert (size(23.5 * 2**30, russian), size(23.5 * 2**30, english)) == ("23,5 ГиБ", "23.5 GiB")
    assert (duration(20, russian), duration(185, russian), duration(0.35, english)) == ("20 с", "3:05", "0.35 s")
    assert (percent(0.75, russian), percent(0.75, english)) == ("75 %", "75%")
    assert quantity("52.1 tokens/s", russian) == "52,1 токен/с"
    assert clock(1.01e9, russian, 2.35e9) == "1,01 из 2,35 ГГц"
    assert number("0.794–0.806", russian) == "0,794–0,806"


def _literal(text: str) -> str:
    return "".join(literal for literal, *_ in string.Formatter().parse(text))


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}

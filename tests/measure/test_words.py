import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.measure.metrics import count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n\t", 0),
        ("... — !?", 0),
        ("hello world", 2),
        ("It isn't 3.14, is it?", 5),
        ("state-of-the-art", 4),
        ("Привет, мир! Как дела?", 4),
        ("кое-что ещё", 3),
        ("我们喜欢开放", 6),
        ("你好，世界！", 4),
        ("日本語 カタカナ", 4),
        ("OpenAI 是一家公司", 6),
        ("café cafe\u0301", 2),
        ("👍🏽 👨\u200d👩\u200d👧 🎉", 0),
        ("well done 👍", 2),
        ("№ 5", 1),
    ],
)
def test_words_as_a_reader_counts_them(text: str, words: int) -> None:
    assert count_words(text) == words


@given(st.lists(st.text("abcdefg", min_size=1)))
def test_words_between_spaces(words: list[str]) -> None:
    assert count_words(" ".join(words)) == len(words)


@given(st.text())
def test_any_text_can_be_counted(text: str) -> None:
    assert 0 <= count_words(text) <= len(text)

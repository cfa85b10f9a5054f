"""The number of words of a text, in any script."""

import unicodedata

from uniseg.wordbreak import words

__all__ = ["count_words", "split_words"]


def count_words(text: str) -> int:
    """Segments with a letter or a digit, by Unicode text segmentation (UAX #29). Chinese has one word per ideograph,
    since UAX #29 has no dictionary."""
    return len(split_words(text))


def split_words(text: str) -> list[str]:
    """The words that `count_words` counts."""
    return [word for word in words(text) if any(unicodedata.category(char)[0] in "LN" for char in word)]

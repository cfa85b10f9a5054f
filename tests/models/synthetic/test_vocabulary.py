from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.models.synthetic.vocabulary import byte_level_vocabulary, sentencepiece_vocabulary


@pytest.mark.parametrize("size", [300, 1000, 32_000, 151_936])
def test_a_byte_level_vocabulary_has_its_size_and_its_merges(size: int) -> None:
    made = byte_level_vocabulary(size)
    assert len(made.tokens) == len(set(made.tokens)) == len(made.types) == size
    known = set(made.tokens)
    for merge in made.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known
    assert made.tokens[made.end] == "<|end|>"
    assert made.types[made.begin] == made.types[made.end] == 3


@pytest.mark.parametrize("size", [300, 1000, 32_000, 262_144])
def test_a_sentencepiece_vocabulary_has_its_size_and_every_byte(size: int) -> None:
    made = sentencepiece_vocabulary(size)
    assert len(made.tokens) == len(set(made.tokens)) == len(made.types) == len(made.scores) == size
    assert made.types.count(6) == 256
    assert made.tokens[made.unknown] == "<unk>"
    assert made.tokens[made.end] == "<|end|>"


def test_a_vocabulary_larger_than_there_are_pieces_is_filled() -> None:
    made = byte_level_vocabulary(700_000)
    assert len(set(made.tokens)) == 700_000
    assert made.types[-1] == 5


QWEN_SIZED = byte_level_vocabulary(151_936)
KNOWN = set(QWEN_SIZED.tokens)
RANKS = {tuple(merge.split(" ")): rank for rank, merge in enumerate(QWEN_SIZED.merges)}


def merged(word: str) -> list[str]:
    """Byte-pair encoding as everybody does it: the pair of the lowest rank first."""
    parts = list(word)
    while True:
        pairs = [(RANKS[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in RANKS]
        if not pairs:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@given(st.text("abcdefghijklmnopqrstuvwxyzĠ", min_size=1, max_size=30))
def test_words_become_tokens_of_the_vocabulary(word: str) -> None:
    parts = merged(word)
    assert "".join(parts) == word
    assert set(parts) <= KNOWN


def test_text_becomes_fewer_tokens_than_letters() -> None:
    words = ["Ġthe", "Ġstones", "Ġcarry", "Ġthe", "Ġweight", "Ġand", "Ġthe", "Ġlintel", "Ġholds", "Ġthem", "Ġtogether"]
    assert sum(len(merged(word)) for word in words) < sum(map(len, words)) / 2

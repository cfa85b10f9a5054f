"""What the scripted engine has instead of a model: a vocabulary, next-token distributions and an answer.

All are pure functions of their input, so every process with the same script generates the same."""

import hashlib
import math
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, product
from typing import Final

from trilithon.engines.scripted.engine import Script
from trilithon.errors import UserError

__all__ = [
    "BOS",
    "EMBEDDING_SIZE",
    "EOS",
    "VOCABULARY",
    "Distribution",
    "Prefix",
    "ScriptedAnswer",
    "ScriptedVocabulary",
    "embedding",
]

EOS: Final = 1
BOS: Final = 2
EMBEDDING_SIZE: Final = 64

_SPECIAL = ("<unk>", "<eos>", "<bos>")
_CYRILLIC = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
_VOWELS = frozenset("aeiouy")
_LONGEST_PIECE = 4

_LOOP = " and then again the same"
_NOISE = "\x00\x01\x02\x07\x0e\x1b\x7f\u200b\u2028\ue000\ue001\uf8ff\ufffd"
_THINK_OPEN, _THINK_CLOSE = "<think>\n", "\n</think>\n\n"


class ScriptedVocabulary:
    """Some 32,000 tokens: 3 special ones, the 256 bytes, and short pieces of Latin and Cyrillic words.

    Other text is encoded byte by byte, so that every text can be decoded again."""

    def __init__(self) -> None:
        self._bytes = [text.encode() for text in _SPECIAL]
        self._bytes += [bytes([value]) for value in range(256)]
        pieces = list(_pieces())
        self._id_of = {piece: number for number, piece in enumerate(pieces, start=len(self._bytes))}
        self._bytes += [piece.encode() for piece in pieces]

    note = ""
    has_tokenizer = True

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def vocabulary(self) -> int:
        return len(self)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The longest piece first. Half surrogates, which UTF-8 cannot encode, become "?"."""
        tokens = [BOS] if add_special else []
        position = 0
        while position < len(text):
            for length in range(_LONGEST_PIECE, 0, -1):
                token = self._id_of.get(text[position : position + length])
                if token is not None:
                    tokens.append(token)
                    position += length
                    break
            else:
                tokens += [len(_SPECIAL) + byte for byte in text[position].encode(errors="replace")]
                position += 1
        return tokens

    def bytes_of(self, token: int) -> bytes:
        return self._bytes[token]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Raises UserError for an id that is out of range."""
        if not all(0 <= token < len(self) for token in tokens):
            raise UserError(f"token ids of this vocabulary are from 0 to {len(self) - 1}")
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")


def _pieces() -> Iterator[str]:
    """Distinct, and in a fixed order, which gives their ids."""
    lower = string.ascii_lowercase
    doubles = ["".join(pair) for pair in product(lower, repeat=2)]
    triples = ["".join(letters) for letters in product(lower, repeat=3)]
    cyrillic = ["".join(pair) for pair in product(_CYRILLIC, repeat=2)]
    yield from (" " + letter for letter in lower + _CYRILLIC)
    yield from _CYRILLIC
    for pairs in (doubles, cyrillic):
        yield from pairs
        yield from (" " + pair for pair in pairs)
    yield from (first + second for first, second in product(string.ascii_uppercase, lower))
    yield from triples
    yield from (" " + letters for letters in triples if not _VOWELS.isdisjoint(letters))


VOCABULARY: Final = ScriptedVocabulary()

# Next-token probabilities fall with the rank as in real text: a first choice, then Zipf-Mandelbrot for the others. With
# these figures the perplexity of any text is about 450, if tokens beyond the first 64 ranks count as the 64th: poor for
# a model, but far from one that does not predict language.
_EXPONENT, _OFFSET = 2.0, 30.0
_LEAST_BEST, _MOST_BEST = 0.1, 0.6
_REST = sum((rank + _OFFSET) ** -_EXPONENT for rank in range(1, len(VOCABULARY)))


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution over the vocabulary: the token of rank r is `first + r * stride`, modulo the size of
    the vocabulary; `best` is the probability of rank 0."""

    first: int
    stride: int
    best: float

    def token(self, rank: int) -> int:
        return (self.first + rank * self.stride) % len(VOCABULARY)

    def logprob_of_rank(self, rank: int) -> float:
        if rank == 0:
            return math.log(self.best)
        return math.log((1 - self.best) / _REST) - _EXPONENT * math.log(rank + _OFFSET)

    def logprob(self, token: int) -> float:
        size = len(VOCABULARY)
        return self.logprob_of_rank((token - self.first) * pow(self.stride, -1, size) % size)

    def top(self, number: int) -> list[tuple[int, float]]:
        return [(self.token(rank), self.logprob_of_rank(rank)) for rank in range(min(number, len(VOCABULARY)))]


class Prefix:
    """A hash of the tokens so far, from which the next distribution is computed."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._hash = hashlib.blake2b(digest_size=24)
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        self._hash.update(token.to_bytes(4, "little"))

    def distribution(self, wrong: float) -> Distribution:
        """The distribution for this prefix; another one for the fraction `wrong` of all prefixes."""
        digest = self._hash.digest()
        if int.from_bytes(digest[:4], "little") < wrong * 2**32:
            digest = hashlib.blake2b(digest, digest_size=24).digest()
        size = len(VOCABULARY)
        stride = int.from_bytes(digest[4:12], "little") % (size - 1) + 1
        while math.gcd(stride, size) != 1:
            stride = stride % (size - 1) + 1
        best = _LEAST_BEST + (_MOST_BEST - _LEAST_BEST) * int.from_bytes(digest[20:24], "little") / 2**32
        return Distribution(int.from_bytes(digest[12:20], "little") % size, stride, best)


class ScriptedAnswer:
    """The tokens that a script generates: thinking in its tags, the text, the end."""

    def __init__(self, script: Script) -> None:
        thinking = f"{_THINK_OPEN}{script.thinking}{_THINK_CLOSE}" if script.thinking else ""
        self._thinking = VOCABULARY.tokenize(thinking)
        self._text = VOCABULARY.tokenize(_answer_text(script))
        self._endless = script.garbage == "loop"

    def tokens(self, *, ignore_eos: bool) -> Iterator[int]:
        """Ends with the end token; without it (a model in a loop, or `ignore_eos`) the text is repeated for ever."""
        if self._endless or ignore_eos:
            return chain(self._thinking, cycle(self._text or VOCABULARY.tokenize(" ")))
        return chain(self._thinking, self._text, (EOS,))


def _answer_text(script: Script) -> str:
    match script.garbage:
        case "loop":
            return _LOOP
        case "noise":
            return "".join(random.Random(1).choices(_NOISE, k=200))
        case "empty":
            return ""
        case _:
            return script.text


def embedding(tokens: Sequence[int]) -> list[float]:
    """A unit vector that depends on the tokens only."""
    name = b"".join(token.to_bytes(4, "little") for token in tokens)
    source = random.Random(hashlib.blake2b(name, digest_size=8).digest())
    values = [source.gauss(0, 1) for _ in range(EMBEDDING_SIZE)]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]

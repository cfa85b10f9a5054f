"""Vocabularies made from nothing: of any size, in the two kinds that most models have, and able to spell any text.

Their pieces are combinations of letters, the common ones first. Text becomes some more tokens than with a vocabulary
that was learnt from text, and every byte has a token.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product

__all__ = ["CHAT_TEMPLATE", "END", "TURN", "Vocabulary", "byte_level_vocabulary", "sentencepiece_vocabulary"]

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
"""English ones, the most frequent first."""

TURN, END = "<|turn|>", "<|end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    f"{{{{ '{TURN}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{TURN}assistant\\n' }}}}{{%- endif -%}}"
)
"""Plain turns; it knows neither tools nor thinking."""

# GGUF's numbers for kinds of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
_SPACE = "\u2581"
_BEGIN = "<|begin|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """`merges` are of byte-level ones, `scores` of SentencePiece; the other is empty. `begin`, `end` and `unknown` are
    token numbers, `unknown` -1 where there is none."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    begin: int
    end: int
    unknown: int = -1


def byte_level_vocabulary(size: int) -> Vocabulary:
    """GPT-2's kind: 256 bytes, a piece for each merge of two, and control tokens at the end."""
    controls = [_BEGIN, TURN, END]
    pairs = list(islice(_merges(size, _byte_letters()[ord(" ")]), size - 256 - len(controls)))
    tokens = [*_byte_letters(), *(left + right for left, right in pairs), *controls]
    spare = [f"<|spare{number}|>" for number in range(size - len(tokens))]
    return Vocabulary(
        tokens=(*tokens, *spare),
        types=(*(_NORMAL,) * (len(tokens) - len(controls)), *(_CONTROL,) * len(controls), *(_UNUSED,) * len(spare)),
        merges=tuple(f"{left} {right}" for left, right in pairs),
        begin=len(tokens) - 3,
        end=len(tokens) - 1,
    )


def sentencepiece_vocabulary(size: int) -> Vocabulary:
    """Unknown, begin and end, then the 256 bytes, then letters and pieces by falling score."""
    head = ["<unk>", _BEGIN, TURN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [_SPACE, *LETTERS, *LETTERS.upper(), *"0123456789.,;:!?'\"()-\n"]
    pieces = chain(letters, (left + right for left, right in _merges(size, _SPACE)))
    tokens = [*head, *islice(pieces, size - len(head))]
    spare = [f"<|spare{number}|>" for number in range(size - len(tokens))]
    own = len(tokens) - len(head)
    return Vocabulary(
        tokens=(*tokens, *spare),
        types=(_UNKNOWN, *(_CONTROL,) * 3, *(_BYTE,) * 256, *(_NORMAL,) * own, *(_UNUSED,) * len(spare)),
        scores=(*(0.0,) * len(head), *(-float(rank) for rank in range(own)), *(-1e6,) * len(spare)),
        begin=1,
        end=3,
        unknown=0,
    )


def _merges(size: int, space: str) -> Iterator[tuple[str, str]]:
    """Pairs of known pieces, each giving a piece that no other pair gives: two letters, three, four; and a space with
    up to three. `size` is about how many will be taken: it says how rare the pairs of pairs may be."""
    pairs = [left + right for left, right in product(LETTERS, LETTERS)]
    yield from product(LETTERS, LETTERS)
    yield from ((space, letter) for letter in LETTERS + LETTERS.upper())
    yield from ((space, pair) for pair in pairs)
    yield from product(pairs, LETTERS)
    yield from ((space + letter, pair) for letter, pair in product(LETTERS, pairs))
    # The most frequent pairs with one another, so that common words are short also in a small vocabulary.
    common = sorted(pairs, key=lambda pair: LETTERS.index(pair[0]) * LETTERS.index(pair[1]) + sum(map(ord, pair)) / 999)
    most = min(math.isqrt(size) + 1, len(common))
    yield from product(common[:most], common[:most])


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it can be seen, else the next one
    from U+0100 on (the scheme of GPT-2's encoder, which llama.cpp undoes)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, hidden = [], 0
    for byte in range(256):
        letters.append(chr(byte if byte in seen else 0x100 + hidden))
        hidden += byte not in seen
    return letters

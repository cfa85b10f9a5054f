"""Makes vocabularies of any size, of the two kinds that most models have. They can encode any text.

Tokens are combinations of letters, the frequent ones first, and every byte has a token. A text has somewhat more tokens
than with a trained vocabulary."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product

__all__ = ["CHAT_TEMPLATE", "END", "TURN", "Vocabulary", "byte_level_vocabulary", "sentencepiece_vocabulary"]

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
"""English letters, the most frequent first."""

TURN, END = "<|turn|>", "<|end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    f"{{{{ '{TURN}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{TURN}assistant\\n' }}}}{{%- endif -%}}"
)
"""Plain turns, without tools and thinking."""

# GGUF's numbers for types of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
_SPACE = "\u2581"
_BEGIN = "<|begin|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Byte-level vocabularies have `merges`, SentencePiece ones `scores`; the other is empty. `begin`, `end` and
    `unknown` are numbers of tokens; `unknown` is -1 if there is none."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    begin: int
    end: int
    unknown: int = -1


def byte_level_vocabulary(size: int) -> Vocabulary:
    """GPT-2's kind: 256 bytes, a token for each merge of two, and control tokens at the end."""
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
    """Pairs of tokens whose concatenation is unique: two to four letters, and a space with up to three. `size` is about
    the number of pairs that will be used: it limits how rare the pairs of pairs may be."""
    pairs = [left + right for left, right in product(LETTERS, LETTERS)]
    yield from product(LETTERS, LETTERS)
    yield from ((space, letter) for letter in LETTERS + LETTERS.upper())
    yield from ((space, pair) for pair in pairs)
    yield from product(pairs, LETTERS)
    yield from ((space + letter, pair) for letter, pair in product(LETTERS, pairs))
    # Combinations of the most frequent pairs, so that common words have few tokens also in a small vocabulary.
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

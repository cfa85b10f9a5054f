"""The pieces of an engine's output as text to show: UTF-8 decoded, stop strings cut, thinking separated.

Pure. The result does not depend on how the text is cut into pieces. Text is held back only while it may be part of a
character, a stop string or a tag."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["ReasoningSplit", "StopFilter", "TextPiece", "TextStream", "held_back", "opens_reasoning"]

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class TextPiece:
    """`reasoning` is true for thinking, false for what the user sees."""

    text: str
    reasoning: bool = False


def held_back(text: str, words: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `words`. Complete words do not count."""
    return max((_overlap(text, word) for word in words), default=0)


def _overlap(text: str, word: str) -> int:
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def opens_reasoning(prompt: str) -> bool:
    """Whether the prompt ends with an open thinking block, as with some templates: then the answer lacks the tag."""
    return prompt.rstrip().endswith(_OPEN)


class StopFilter:
    """Text up to the stop string that is complete first; of several that end together, the longest counts."""

    def __init__(self, words: Iterable[str]):
        self._words = tuple(word for word in words if word)
        self._held = ""
        self.stopped: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        matches = [(at + len(word), at, word) for word in self._words if (at := text.find(word)) >= 0]
        if matches:
            _, at, self.stopped = min(matches)
            self._held = ""
            return text[:at]
        safe = len(text) - held_back(text, self._words)
        self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class ReasoningSplit:
    """Separates `<think>…</think>` at the beginning of an answer from the rest. The tags and the white space around the
    two parts are dropped. A later tag is ordinary text.

    `opened` means that the prompt ended with the opening tag. A block that is never closed is reasoning to its end.
    Without `split` all text is visible."""

    def __init__(self, opened: bool = False, *, split: bool = True):
        self._opened = opened
        self._state: Literal["start", "reasoning", "between", "visible"] = "start" if split else "visible"
        self._held = ""
        self._reasoned = False

    def feed(self, text: str) -> list[TextPiece]:
        return self._drain(text, final=False)

    def finish(self) -> list[TextPiece]:
        return self._drain("", final=True)

    def _drain(self, text: str, final: bool) -> list[TextPiece]:
        self._held += text
        pieces = []
        if self._state == "start":
            self._begin(final)
        if self._state == "reasoning":
            pieces.append(TextPiece(self._reason(final), reasoning=True))
        if self._state == "between":
            self._held = self._held.lstrip()
            self._state = "visible" if self._held else "between"
        if self._state == "visible":
            pieces.append(TextPiece(self._held))
            self._held = ""
        return [piece for piece in pieces if piece.text]

    def _begin(self, final: bool) -> None:
        """Leaves the first state when it is clear whether the answer begins with a tag."""
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._held, self._state = start.removeprefix(_OPEN), "reasoning"
        elif final or not _OPEN.startswith(start):
            self._state = "reasoning" if self._opened else "visible"

    def _reason(self, final: bool) -> str:
        if not self._reasoned:
            self._held = self._held.lstrip()
        before, tag, after = self._held.partition(_CLOSE)
        if tag:
            self._held, self._state = after, "between"
            return before.rstrip()
        safe = len(self._held) - (0 if final else held_back(self._held, (_CLOSE,)))
        shown = self._held[:safe].rstrip()  # this white space may be at the end of the block
        self._held = "" if final else self._held[len(shown) :]
        self._reasoned |= bool(shown)
        return shown


class TextStream:
    """One answer: raw pieces in, pieces to show out. Stop strings are found in the raw text."""

    def __init__(self, *, stop: Sequence[str] = (), split_reasoning: bool = True, reasoning_opened: bool = False):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopFilter(stop)
        self._split = ReasoningSplit(reasoning_opened, split=split_reasoning)

    @property
    def stopped(self) -> str | None:
        """The stop string that was found; text after it is dropped."""
        return self._stop.stopped

    def feed(self, piece: bytes | str) -> list[TextPiece]:
        """Bytes may end within a character; the bytes before a text may not."""
        if isinstance(piece, bytes):
            text = self._decoder.decode(piece)
        else:
            text = self._decoder.decode(b"", final=True) + piece
        return self._split.feed(self._stop.feed(text))

    def finish(self) -> list[TextPiece]:
        rest = self._stop.feed(self._decoder.decode(b"", final=True)) + self._stop.finish()
        return self._split.feed(rest) + self._split.finish()

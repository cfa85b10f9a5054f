"""A growing Markdown text as blocks: what is finished is drawn once, so that a token costs the same however long the
answer is."""

import re

__all__ = ["Blocks"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# A listing without end is cut at a line's end, and goes on in a fence of its own.
_LONGEST_BLOCK = 4000


class Blocks:
    """`rest` is the block under way."""

    def __init__(self) -> None:
        self.rest = ""
        self._fence = ""  # the opening line of the listing that the text is in
        self._seen = 0  # of `rest`: lines that were looked at

    def feed(self, text: str) -> list[str]:
        """The blocks that are finished now."""
        self.rest += text
        finished: list[str] = []
        while True:
            end = self.rest.find("\n", self._seen)
            if end < 0:
                return finished
            line, self._seen = self.rest[self._seen : end], end + 1
            self._look(line)
            if (not line.strip() and not self._fence) or self._seen > _LONGEST_BLOCK:
                finished += self._cut()

    def finish(self) -> list[str]:
        remainder, self.rest, self._seen, self._fence = self.rest, "", 0, ""
        return [remainder] if remainder.strip() else []

    def _look(self, line: str) -> None:
        match = _FENCE.match(line)
        if match is None:
            return
        if not self._fence:
            self._fence = line
        elif self._closes(match[1], line):
            self._fence = ""

    def _closes(self, marks: str, line: str) -> bool:
        """CommonMark 0.31, section 4.5: as many of the same at least, and nothing behind them."""
        opening = _FENCE.match(self._fence)
        assert opening is not None
        return marks[0] == opening[1][0] and len(marks) >= len(opening[1]) and line.strip() == marks

    def _cut(self) -> list[str]:
        block, self.rest, self._seen = self.rest[: self._seen], self.rest[self._seen :], 0
        if self._fence:
            opening = _FENCE.match(self._fence)
            assert opening is not None
            block, self.rest = f"{block}{opening[1]}\n", f"{self._fence}\n{self.rest}"
            self._seen = len(self._fence) + 1
        return [block] if block.strip() else []

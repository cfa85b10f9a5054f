"""An engine calls a model by its file; a client must get the name that it asked by, and no path of this machine.

All other bytes of an answer pass through untouched. In a text each quotation mark is escaped, so that no text that a
model writes can be mistaken for the field."""

import json
from pathlib import Path

__all__ = ["ModelNames"]


class ModelNames:
    """Over the chunks of one answer, wherever they are cut."""

    def __init__(self, path: Path, name: str):
        self._pairs = [
            (f'"model":{gap}{_quoted(own)}'.encode(), f'"model":{gap}{_quoted(name)}'.encode())
            for own in (str(path), path.name, path.stem)
            for gap in ("", " ")
        ]
        self._longest = max(len(old) for old, _ in self._pairs)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        content = self._held + chunk
        for old, new in self._pairs:
            content = content.replace(old, new)
        kept = self._begun(content)
        self._held = content[len(content) - kept :]
        return content[: len(content) - kept]

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def whole(self, content: bytes) -> bytes:
        return self.feed(content) + self.finish()

    def _begun(self, content: bytes) -> int:
        """How many of the last bytes may be the beginning of the field."""
        if content.endswith(b"\n"):  # where a server ends what it sends; a field has no line's end
            return 0
        tail = content[-self._longest :]
        at = tail.find(b'"')
        while at >= 0:
            rest = tail[at:]
            if any(len(rest) < len(old) and old.startswith(rest) for old, _ in self._pairs):
                return len(rest)
            at = tail.find(b'"', at + 1)
        return 0


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

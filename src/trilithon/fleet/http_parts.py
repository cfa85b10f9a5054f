"""As much of HTTP/1.1 as passes between HAProxy and the relay: heads, and bodies with a length or in chunks."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

__all__ = ["Broken", "Head", "chunk", "content", "read_head"]

_LONGEST_LINE = 64


class Broken(Exception):
    """The other side closed the connection, or sent what is not HTTP, before the message was whole."""


@dataclass(frozen=True, slots=True)
class Head:
    """`first` is the first line, `fields` the headers with names in lower case."""

    first: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """The first value; empty where there is none."""
        return next((value for field, value in self.fields if field == name), "")

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first.split(" ", 2)[1])

    @property
    def path(self) -> str:
        """Of a request, without the query."""
        return self.first.split(" ")[1].partition("?")[0]

    @property
    def is_chunked(self) -> bool:
        return self.get("transfer-encoding").lower().endswith("chunked")

    @property
    def length(self) -> int | None:
        """Of the body; None where it is not told."""
        text = self.get("content-length")
        return int(text) if text.isascii() and text.isdecimal() else None

    def encoded(self, framing: str = "") -> bytes:
        """With `Connection: close`: each connection of the relay has one request. `framing` is the header that replaces
        those that say how the body ends."""
        left_out = {"connection", "keep-alive"} | ({"content-length", "transfer-encoding"} if framing else set())
        lines = [self.first, *(f"{name}: {value}" for name, value in self.fields if name not in left_out)]
        return "\r\n".join([*lines, *([framing] if framing else []), "connection: close", "", ""]).encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Of a request or an answer. Raises Broken."""
    try:
        while True:
            text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
            pairs = (line.partition(":") for line in lines)
            head = Head(first, tuple((name.strip().lower(), value.strip()) for name, _, value in pairs))
            if not first.startswith("HTTP/") or head.status >= 200:  # 1xx announces another one
                return head
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError, IndexError) as error:
        raise Broken(str(error)) from error


async def content(reader: asyncio.StreamReader, head: Head, piece_bytes: int = 1 << 16) -> AsyncIterator[bytes]:
    """The body of the answer, without its framing. Raises Broken where it is not whole."""
    try:
        if head.is_chunked:
            while size := await _chunk_size(reader):
                data = await reader.readexactly(size + 2)
                yield data[:-2]
            while (await reader.readuntil(b"\r\n")) != b"\r\n":
                pass
            return
        left = head.length
        while left is None or left > 0:
            data = await reader.read(piece_bytes if left is None else min(left, piece_bytes))
            if not data:
                if left is None:
                    return
                raise Broken(f"{left} bytes are missing")
            left = None if left is None else left - len(data)
            yield data
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError) as error:
        raise Broken(str(error)) from error


def chunk(data: bytes) -> bytes:
    """Empty data is the end of the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    line = await reader.readuntil(b"\r\n")
    return int(line[:_LONGEST_LINE].partition(b";")[0], 16)

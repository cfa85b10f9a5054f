"""The header of a GGUF that is on a server, by range requests: a few megabytes, most of which are the vocabulary."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.http_client import (
    DownloadSource,
    RetryableError,
    RetryPolicy,
    body_chunks,
    new_client,
    open_response,
    redacted_url,
    retry_delay,
)
from trilithon.models.files.gguf import GgufFacts, facts_of
from trilithon.models.files.gguf_header import HeaderReader
from trilithon.models.files.gguf_parts import GgufHeader, count_of, header_of, joined
from trilithon.units import format_bytes

__all__ = ["read_remote_gguf"]

# Few requests, as each has a handshake of TLS: most headers have 2 to 12 MB.
_FIRST_BYTES, _NEXT_BYTES = 1 << 20, 4 << 20
_MOST_BYTES = 64 << 20
_MOST_SECONDS = 60.0  # of one request
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


def read_remote_gguf(parts: Sequence[tuple[str, DownloadSource]], retry: RetryPolicy) -> GgufFacts:
    """The facts of a model from its parts in order, each a file name and where it is. Raises ModelError for what is no
    complete GGUF, and DownloadError when the server fails or sends no ranges."""
    headers = [_read_part(name, source, retry) for name, source in parts]
    count = count_of(headers[0].values)
    if len(headers) == 1 and count > 1:
        raise ModelError(
            "{name} is one of {count} parts, and estimates need all; name the repository: hf.co/USER/NAME:QUANT",
            name=parts[0][0].rpartition("/")[2][:80],
            count=count,
        )
    return facts_of(headers[0] if len(headers) == 1 else joined(headers))


def _read_part(name: str, source: DownloadSource, retry: RetryPolicy) -> GgufHeader:
    reader = _RemoteReader(name, source, retry)
    reader.start()
    return header_of(reader)


class _RemoteReader(HeaderReader):
    """Reads from a server; it knows the size of the file after the first answer."""

    def __init__(self, name: str, source: DownloadSource, retry: RetryPolicy):
        super().__init__(Path(name), size_bytes=1)
        self._source, self._retry, self._left = source, retry, _MOST_BYTES
        self._first = self._fetch(0, _FIRST_BYTES)

    def _read(self, offset: int, count: int) -> bytes:
        if offset == 0:
            return self._first
        return self._fetch(offset, min(max(count, _NEXT_BYTES), self.size_bytes - offset))

    def _fetch(self, offset: int, count: int) -> bytes:
        content, self.size_bytes = asyncio.run(_fetch_range(self._source, offset, count, self._retry))
        self._left -= len(content)
        if self._left < 0:
            raise self._damaged(f"its header has more than {format_bytes(_MOST_BYTES)}")
        return content


async def _fetch_range(source: DownloadSource, offset: int, count: int, retry: RetryPolicy) -> tuple[bytes, int]:
    """At most `count` bytes from `offset` on, and the size of the whole file. Raises ModelError and DownloadError."""
    headers = {"Range": f"bytes={offset}-{offset + count - 1}"}
    failures = 0
    async with new_client(source, retry) as client:
        while True:
            try:
                async with (
                    asyncio.timeout(_MOST_SECONDS),
                    open_response(client, source, headers, frozenset({200, 206})) as response,
                ):
                    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                    if response.status_code != 206 or match is None or int(match[1]) != offset:
                        raise DownloadError(
                            "{address}: its server sends no parts of files; pull it", address=redacted_url(source.url)
                        )
                    content, expected = bytearray(), min(count, int(match[3]) - offset)
                    async for chunk in body_chunks(response, retry):
                        content += chunk
                        if len(content) >= expected:
                            break
                    if len(content) < expected:
                        raise RetryableError("the connection was cut")
                    return bytes(content[:expected]), int(match[3])
            except TimeoutError:
                failure = RetryableError("the data comes too slowly")
            except RetryableError as error:
                failure = error
            failures += 1
            await asyncio.sleep(retry_delay(source, failure, failures, retry))

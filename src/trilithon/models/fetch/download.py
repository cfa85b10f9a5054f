"""The transfer itself: several ranges at once into a Partial, taken up where it stopped, never two versions glued.

Nothing here decides when a file is good: its length is compared with what was announced, its sum by `Partial.finish`.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

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
from trilithon.models.fetch.transfer_rate import RateLimit, ReportProgress, TransferRate
from trilithon.models.store.partial import Partial

if TYPE_CHECKING:
    import httpx

__all__ = ["Download", "FileChanged", "Remote", "download", "probe", "segments"]

_SEGMENT_BYTES = 32 << 20
_LEAST_SEGMENT_BYTES = 1 << 20
_MOST_SEGMENT_SHARE = 4  # every connection gets at least so many, so that none is left with a long tail
_TELL_SECONDS = 0.2
_WORTH_BYTES = 4 << 10  # so much between two failures is progress
_STRICT_LOOKS = 2
_MOST_LOOKS = 4
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")
_PLAIN_NAME = re.compile(r"filename\s*=\s*(?:\"([^\"]*)\"|([^;\s]+))", re.IGNORECASE)
_ENCODED_NAME = re.compile(r"filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """`connections` at once; `limit` bytes a second in all."""

    connections: int = 4
    limit: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What a server says about a file. `version` is its ETag or time of the last change, empty where it has neither;
    `file_name` is the one that it proposes."""

    size_bytes: int | None
    version: str
    ranges: bool
    file_name: str = ""


class FileChanged(Exception):
    """The file is another one than when it was looked at."""


def probe(source: DownloadSource, transfer: Download) -> Remote:
    """Ask about the file, without fetching it. Raises ModelError and DownloadError."""

    async def ask() -> Remote:
        async with new_client(transfer.retry) as client:
            return await _look(client, source, transfer.retry)

    return asyncio.run(ask())


def download(
    source: DownloadSource, partial: Partial, *, transfer: Download, tell: ReportProgress, remote: Remote | None = None
) -> None:
    """Write all that is missing of `partial`, whose sum is known or which `remote` is about.

    Without a sum, a server that does not tell versions apart is asked for the whole in one go, every time. Raises
    ModelError when the file has another length than it should, DownloadError when the server or the network fails (what
    came stays for the next one to go on with), and Changed when it is not `remote` any more.
    """
    if partial.present or (partial.size_bytes is not None and not partial.missing):
        return
    asyncio.run(_download(source, partial, transfer, tell, remote))


def segments(missing: tuple[tuple[int, int | None], ...], connections: int) -> list[tuple[int, int]]:
    """Pieces to be asked for one by one, in order; all ends must be known."""
    total = sum((end or 0) - start for start, end in missing)
    length = min(max(total // (connections * _MOST_SEGMENT_SHARE), _LEAST_SEGMENT_BYTES), _SEGMENT_BYTES)
    return [
        (at, min(at + length, end)) for start, end in missing if end is not None for at in range(start, end, length)
    ]


async def _download(
    source: DownloadSource, partial: Partial, transfer: Download, tell: ReportProgress, remote: Remote | None
) -> None:
    expected = partial.size_bytes
    async with new_client(transfer.retry, transfer.connections) as client:
        if remote is not None:
            _expect(source, partial, remote, expected)
            running = _Running(client, source, remote, partial, transfer, tell, strict=True)
            await running.run(ranges=remote.ranges and bool(remote.version))
            return
        for attempt in range(1, _MOST_LOOKS + 1):
            found = await _look(client, source, transfer.retry)
            _expect(source, partial, found, expected)
            # Servers behind one name may disagree on an ETag; the sum has the last word.
            running = _Running(client, source, found, partial, transfer, tell, strict=attempt <= _STRICT_LOOKS)
            try:
                await running.run(ranges=found.ranges)
                return
            except FileChanged:
                partial.restart()
    raise DownloadError(f"{redacted_url(source.url)} keeps changing while it is fetched; try again later")


def _expect(source: DownloadSource, partial: Partial, remote: Remote, expected: int | None) -> None:
    if remote.size_bytes is None:
        return
    if expected not in (None, remote.size_bytes):
        raise ModelError(
            f"{redacted_url(source.url)} has {remote.size_bytes} bytes and should have {expected}: "
            "it is not the file that was announced; try again later, or another source"
        )
    partial.expect(remote.size_bytes)


async def _look(client: "httpx.AsyncClient", source: DownloadSource, retry: RetryPolicy) -> Remote:
    failures = 0
    while True:
        try:
            async with open_response(client, source, {"Range": "bytes=0-0"}, frozenset({200, 206, 416})) as response:
                return _remote(response, source)
        except RetryableError as again:
            failures += 1
            await asyncio.sleep(retry_delay(source, again, failures, retry))


def _remote(response: "httpx.Response", source: DownloadSource) -> Remote:
    _require_plain(response, source)
    headers = response.headers
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if response.status_code == 416 and (match is None or match[3] != "0"):
        raise DownloadError(f"{redacted_url(source.url)} gives no part of itself; try again later, or another source")
    size = _number(match[3]) if match else _number(headers.get("Content-Length", ""))
    return Remote(
        size_bytes=size,
        version=_version(headers),
        ranges=response.status_code == 206 and match is not None and size is not None,
        file_name=_proposed_name(headers.get("Content-Disposition", "")),
    )


class _Running:
    """One go at a file of one version."""

    def __init__(
        self,
        client: "httpx.AsyncClient",
        source: DownloadSource,
        remote: Remote,
        partial: Partial,
        transfer: Download,
        tell: ReportProgress,
        *,
        strict: bool,
    ):
        self._client, self._source, self._remote, self._partial = client, source, remote, partial
        self._transfer, self._tell, self._strict = transfer, tell, strict
        self._pace, self._limit = TransferRate(), RateLimit(transfer.limit)
        self._came_bytes = 0
        self._not_before = 0.0
        self._over = asyncio.Event()

    async def run(self, *, ranges: bool) -> None:
        work = self._in_ranges() if ranges else self._in_one_go()
        await _together(self._finally_over(work), self._keep_telling())

    async def _finally_over(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._over.set()

    async def _keep_telling(self) -> None:
        while not self._over.is_set():
            self._tell_now()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _TELL_SECONDS)
        self._tell_now()

    def _tell_now(self) -> None:
        self._tell(self._pace.at(self._partial.bytes_done, self._partial.size_bytes))

    async def _in_ranges(self) -> None:
        waiting = deque(segments(self._partial.missing, self._transfer.connections))

        async def work() -> None:
            while waiting:
                await self._fetch_range(*waiting.popleft())

        await _together(*(work() for _ in range(min(self._transfer.connections, len(waiting)))))

    async def _fetch_range(self, start: int, end: int) -> None:
        row = _Row(self._came_bytes)
        while start < end:
            await self._pause()
            begun = start
            try:
                async with open_response(
                    self._client, self._source, {"Range": f"bytes={start}-{end - 1}"}, frozenset({200, 206, 416})
                ) as response:
                    self._require_part(response, start, end)
                    async for piece in self._pieces(response):
                        self._require_fitting(len(piece), end - start)
                        await self._write(start, piece)
                        start += len(piece)
                if start < end:
                    raise RetryableError("the connection was cut")
            except RetryableError as again:
                failures = row.another(start - begun, self._came_bytes, self._transfer.retry.attempts)
                await self._back_off(again, failures)

    async def _in_one_go(self) -> None:
        """From the beginning every time: for servers that know no ranges."""
        failures = 0
        while True:
            self._partial.restart()
            await self._pause()
            try:
                async with open_response(self._client, self._source, {}, frozenset({200})) as response:
                    self._require_same(response)
                    at = 0
                    async for piece in self._pieces(response):
                        await self._write(at, piece)
                        at += len(piece)
                if self._partial.size_bytes in (None, at):
                    return
                raise RetryableError("the connection was cut")
            except RetryableError as again:
                failures += 1
                await self._back_off(again, failures)

    async def _pieces(self, response: "httpx.Response") -> AsyncIterator[bytes]:
        """As they come, no faster than the limit."""
        async for piece in body_chunks(response, self._transfer.retry):
            yield piece
            self._came_bytes += len(piece)
            await asyncio.sleep(self._limit.take(len(piece)))

    async def _write(self, offset: int, data: bytes) -> None:
        """In a thread: the disk may take seconds. Whoever cancels this waits for it, for the file must not be closed
        or begun anew meanwhile."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._partial.write_at, offset, data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    def _require_part(self, response: "httpx.Response", start: int, end: int) -> None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None or _number(match[3]) not in (None, self._remote.size_bytes):
            raise FileChanged
        if _number(match[1] or "") != start:
            raise DownloadError(self._other_bytes())
        self._require_fitting(int(match[2]) + 1 - start, end - start)
        self._require_same(response)

    def _require_fitting(self, count: int, room: int) -> None:
        if count > room:
            raise DownloadError(self._other_bytes())

    def _other_bytes(self) -> str:
        return f"{redacted_url(self._source.url)} gives other bytes than asked for; try another source"

    def _require_same(self, response: "httpx.Response") -> None:
        _require_plain(response, self._source)
        if self._strict and _version(response.headers) != self._remote.version:
            raise FileChanged

    async def _pause(self) -> None:
        await asyncio.sleep(max(self._not_before - time.monotonic(), 0.0))

    async def _back_off(self, again: RetryableError, failures: int) -> None:
        wait = retry_delay(self._source, again, failures, self._transfer.retry)
        if again.wait_seconds:  # said to one of us, and meant for all
            self._not_before = max(self._not_before, time.monotonic() + wait)
        await asyncio.sleep(wait)


class _Row:
    """Failures in a row of one connection. It ends with bytes of its own; bytes of others (a server may let only one
    of us in at a time) make it no shorter, and keep it from being the end."""

    def __init__(self, came_bytes: int) -> None:
        self._failures, self._tries, self._since = 0, 0, came_bytes

    def another(self, own_bytes: int, came_bytes: int, most: int) -> int:
        """How many it are, less than `most` as long as something comes to somebody."""
        if own_bytes >= _WORTH_BYTES:
            self._failures, self._tries, self._since = 0, 0, came_bytes
        self._failures, self._tries = self._failures + 1, self._tries + 1
        if self._tries < most:
            return min(self._failures, most - 1)
        if came_bytes - self._since < _WORTH_BYTES:
            return self._tries
        self._tries, self._since = 1, came_bytes
        return most - 1


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    """All of them; the first failure ends the others, and they have ended when it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _require_plain(response: "httpx.Response", source: DownloadSource) -> None:
    """Packed content would be kept as it came, and its length and ranges are those of the packed bytes."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{redacted_url(source.url)} comes packed although asked not to; try another source")


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag", "") or headers.get("Last-Modified", "")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _proposed_name(disposition: str) -> str:
    if encoded := _ENCODED_NAME.search(disposition):
        return unquote(encoded[1], errors="replace")
    plain = _PLAIN_NAME.search(disposition)
    return (plain[1] or plain[2] or "") if plain else ""

"""Transfers a file into a Partial: several ranges at once, resumable, and never with parts of two versions.

The length is compared with the announced one here; the checksum is verified by `Partial.finish`."""

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
_LEAST_SEGMENTS = 4  # per connection, so that all connections end at about the same time
_REPORT_SECONDS = 0.2
_PROGRESS_BYTES = 4 << 10  # at least so much between two failures counts as progress
_STRICT_PROBES = 2
_MOST_PROBES = 4
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")
_PLAIN_NAME = re.compile(r"filename\s*=\s*(?:\"([^\"]*)\"|([^;\s]+))", re.IGNORECASE)
_ENCODED_NAME = re.compile(r"filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Options of a transfer: parallel `connections`, and the `limit` of all of them in bytes per second."""

    connections: int = 4
    limit: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What a server says about a file. `version` is its ETag or Last-Modified, empty without either; `ranges` means
    that it supports range requests; `file_name` is the name that it proposes."""

    size_bytes: int | None
    version: str
    ranges: bool
    file_name: str = ""


class FileChanged(Exception):
    """The file on the server changed since it was probed."""


def probe(source: DownloadSource, transfer: Download) -> Remote:
    """Ask about the file, without fetching it. Raises ModelError and DownloadError."""

    async def ask() -> Remote:
        async with new_client(source, transfer.retry) as client:
            return await _probe(client, source, transfer.retry)

    return asyncio.run(ask())


def download(
    source: DownloadSource,
    partial: Partial,
    *,
    transfer: Download,
    report: ReportProgress,
    remote: Remote | None = None,
) -> None:
    """Write everything that is missing of `partial`. Its checksum is known, or `remote` is its version.

    Without a checksum, a server without versions is asked for the whole file every time. Raises ModelError when the
    file has the wrong length, DownloadError when the server or the network fails (the received bytes are kept for a
    resume), and FileChanged when it is not `remote` any more."""
    if partial.present or (partial.size_bytes is not None and not partial.missing):
        return
    asyncio.run(_download(source, partial, transfer, report, remote))


def segments(missing: tuple[tuple[int, int | None], ...], connections: int) -> list[tuple[int, int]]:
    """The ranges of the requests for the missing bytes, in order. All ends have to be known."""
    total = sum((end or 0) - start for start, end in missing)
    length = min(max(total // (connections * _LEAST_SEGMENTS), _LEAST_SEGMENT_BYTES), _SEGMENT_BYTES)
    return [
        (at, min(at + length, end)) for start, end in missing if end is not None for at in range(start, end, length)
    ]


async def _download(
    source: DownloadSource, partial: Partial, transfer: Download, report: ReportProgress, remote: Remote | None
) -> None:
    expected = partial.size_bytes
    async with new_client(source, transfer.retry, transfer.connections) as client:
        if remote is not None:
            _expect(source, partial, remote, expected)
            attempt = _Attempt(client, source, remote, partial, transfer, report, strict=True)
            await attempt.run(ranges=remote.ranges and bool(remote.version))
            return
        for number in range(1, _MOST_PROBES + 1):
            remote = await _probe(client, source, transfer.retry)
            _expect(source, partial, remote, expected)
            # Servers behind one name may have different ETags; in the end the checksum decides.
            attempt = _Attempt(client, source, remote, partial, transfer, report, strict=number <= _STRICT_PROBES)
            try:
                await attempt.run(ranges=remote.ranges)
                return
            except FileChanged:
                partial.restart()
    raise DownloadError(
        "{address} keeps changing while it is fetched; try again later", address=redacted_url(source.url)
    )


def _expect(source: DownloadSource, partial: Partial, remote: Remote, expected: int | None) -> None:
    if remote.size_bytes is None:
        return
    if expected not in (None, remote.size_bytes):
        raise ModelError(
            "{address} has {size_bytes} bytes and should have {expected}: it is not the announced "
            "file; try again later, or another source",
            address=redacted_url(source.url),
            size_bytes=remote.size_bytes,
            expected=expected,
        )
    partial.expect(remote.size_bytes)


async def _probe(client: "httpx.AsyncClient", source: DownloadSource, retry: RetryPolicy) -> Remote:
    failures = 0
    while True:
        try:
            async with open_response(client, source, {"Range": "bytes=0-0"}, frozenset({200, 206, 416})) as response:
                return _remote(response, source)
        except RetryableError as failure:
            failures += 1
            await asyncio.sleep(retry_delay(source, failure, failures, retry))


def _remote(response: "httpx.Response", source: DownloadSource) -> Remote:
    _require_plain(response, source)
    headers = response.headers
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if response.status_code == 416 and (match is None or match[3] != "0"):
        raise DownloadError(
            "{address} refuses a range of one byte; try again later, or another source",
            address=redacted_url(source.url),
        )
    size = _number(match[3]) if match else _number(headers.get("Content-Length", ""))
    return Remote(
        size_bytes=size,
        version=_version(headers),
        ranges=response.status_code == 206 and match is not None and size is not None,
        file_name=_proposed_name(headers.get("Content-Disposition", "")),
    )


class _Attempt:
    """One attempt to transfer a file of one version."""

    def __init__(
        self,
        client: "httpx.AsyncClient",
        source: DownloadSource,
        remote: Remote,
        partial: Partial,
        transfer: Download,
        report: ReportProgress,
        *,
        strict: bool,
    ):
        self._client, self._source, self._remote, self._partial = client, source, remote, partial
        self._transfer, self._report, self._strict = transfer, report, strict
        self._rate, self._limit = TransferRate(), RateLimit(transfer.limit)
        self._received_bytes = 0
        self._not_before = 0.0
        self._ended = asyncio.Event()

    async def run(self, *, ranges: bool) -> None:
        work = self._in_ranges() if ranges else self._in_one_go()
        await _together(self._then_end(work), self._report_regularly())

    async def _then_end(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._ended.set()

    async def _report_regularly(self) -> None:
        while not self._ended.is_set():
            self._report_now()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _REPORT_SECONDS)
        self._report_now()

    def _report_now(self) -> None:
        self._report(self._rate.at(self._partial.bytes_done, self._partial.size_bytes))

    async def _in_ranges(self) -> None:
        waiting = deque(segments(self._partial.missing, self._transfer.connections))

        async def work() -> None:
            while waiting:
                await self._fetch_range(*waiting.popleft())

        await _together(*(work() for _ in range(min(self._transfer.connections, len(waiting)))))

    async def _fetch_range(self, start: int, end: int) -> None:
        failures_in_a_row = _FailureCount(self._received_bytes)
        while start < end:
            await self._pause()
            first = start
            try:
                async with open_response(
                    self._client, self._source, {"Range": f"bytes={start}-{end - 1}"}, frozenset({200, 206, 416})
                ) as response:
                    self._require_part(response, start, end)
                    async for chunk in self._chunks(response):
                        self._require_fitting(len(chunk), end - start)
                        await self._write(start, chunk)
                        start += len(chunk)
                if start < end:
                    raise RetryableError("the connection was cut")
            except RetryableError as failure:
                failures = failures_in_a_row.add(start - first, self._received_bytes, self._transfer.retry.attempts)
                await self._back_off(failure, failures)

    async def _in_one_go(self) -> None:
        """Fetch the whole file with one request, for servers without ranges."""
        failures = 0
        while True:
            self._partial.restart()
            await self._pause()
            try:
                async with open_response(self._client, self._source, {}, frozenset({200})) as response:
                    self._require_same(response)
                    at = 0
                    async for chunk in self._chunks(response):
                        await self._write(at, chunk)
                        at += len(chunk)
                if self._partial.size_bytes in (None, at):
                    return
                raise RetryableError("the connection was cut")
            except RetryableError as failure:
                failures += 1
                await self._back_off(failure, failures)

    async def _chunks(self, response: "httpx.Response") -> AsyncIterator[bytes]:
        """The chunks of the body, no faster than the limit."""
        async for chunk in body_chunks(response, self._transfer.retry):
            yield chunk
            self._received_bytes += len(chunk)
            await asyncio.sleep(self._limit.take(len(chunk)))

    async def _write(self, offset: int, data: bytes) -> None:
        """Write in a thread, because the disk may take seconds. A cancellation waits for it: the file must not be
        closed or restarted meanwhile."""
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
            raise DownloadError(self._wrong_range())
        self._require_fitting(int(match[2]) + 1 - start, end - start)
        self._require_same(response)

    def _require_fitting(self, count: int, limit: int) -> None:
        if count > limit:
            raise DownloadError(self._wrong_range())

    def _wrong_range(self) -> str:
        return f"{redacted_url(self._source.url)} sends a wrong range; try another source"

    def _require_same(self, response: "httpx.Response") -> None:
        _require_plain(response, self._source)
        if self._strict and _version(response.headers) != self._remote.version:
            raise FileChanged

    async def _pause(self) -> None:
        await asyncio.sleep(max(self._not_before - time.monotonic(), 0.0))

    async def _back_off(self, failure: RetryableError, failures: int) -> None:
        wait = retry_delay(self._source, failure, failures, self._transfer.retry)
        if failure.wait_seconds:  # it applies to all connections
            self._not_before = max(self._not_before, time.monotonic() + wait)
        await asyncio.sleep(wait)


class _FailureCount:
    """The failures in a row of one connection. Data on this connection resets the count; data on others (a server may
    allow only one connection at a time) does not, but then the count never reaches the limit."""

    def __init__(self, received_bytes: int) -> None:
        self._failures, self._tries, self._since = 0, 0, received_bytes

    def add(self, own_bytes: int, received_bytes: int, limit: int) -> int:
        """Count a failure, and return the count: less than `limit` while some connection makes progress."""
        if own_bytes >= _PROGRESS_BYTES:
            self._failures, self._tries, self._since = 0, 0, received_bytes
        self._failures, self._tries = self._failures + 1, self._tries + 1
        if self._tries < limit:
            return min(self._failures, limit - 1)
        if received_bytes - self._since < _PROGRESS_BYTES:
            return self._tries
        self._tries, self._since = 1, received_bytes
        return limit - 1


async def _together(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all of them. The first failure cancels the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _require_plain(response: "httpx.Response", source: DownloadSource) -> None:
    """Raises DownloadError for compressed content, whose length and ranges would be those of the compressed bytes."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("{address} sends compressed data; try another source", address=redacted_url(source.url))


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag", "") or headers.get("Last-Modified", "")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _proposed_name(disposition: str) -> str:
    if encoded := _ENCODED_NAME.search(disposition):
        return unquote(encoded[1], errors="replace")
    plain = _PLAIN_NAME.search(disposition)
    return (plain[1] or plain[2] or "") if plain else ""

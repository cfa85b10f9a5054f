"""One way to ask a server for a file: redirects, secrets that stay with their host, and what went wrong in words."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from trilithon.errors import DownloadError, ModelError, TrilithonError
from trilithon.units import format_bytes, format_duration

if TYPE_CHECKING:  # it takes a fifth of a second to import
    import httpx

__all__ = [
    "Again",
    "Denied",
    "Patience",
    "Source",
    "fetch_small",
    "is_loopback",
    "new_client",
    "next_wait",
    "opened",
    "shown_url",
]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})  # from 520 on: Cloudflare's
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")
_WORDS = {
    401: "asks who you are; log in there, and give the token",
    403: "does not let you have it; check that you may",
    404: "has no such file; check the name",
    410: "has it no more; look for a newer name",
    416: "cannot give that part of it; try again",
    451: "may not give it for legal reasons",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to bear with a server: `attempts` failures in a row without a byte, waits that double between them."""

    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    longest_asked_seconds: float = 300.0
    silence_seconds: float = 30.0

    def wait_seconds(self, failures: int, asked: float | None) -> float:
        """Before the next try; what the server asked for counts, and no two clients come back at the same moment."""
        wait = min(self.first_wait_seconds * 2.0 ** min(failures - 1, 20), self.longest_wait_seconds)
        return max(wait * random.uniform(0.7, 1.0), asked or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a file comes from. `headers` go to the host of `url` alone; `words` say what its answers (by status) mean,
    in place of the general ones. Over plain http, `insecure` has to be said unless the host is this machine."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[int, str] = field(default_factory=dict)
    insecure: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ModelError(f"{shown_url(self.url)} is no address to fetch from; write https://HOST/FILE")
        if parts.scheme == "http" and not self.insecure and not is_loopback(self.url):
            raise ModelError(
                f"{shown_url(self.url)}: plain http can be changed on the way; write https, or add --insecure"
            )


class Denied(ModelError):
    """The server has no such file, or not for us."""


class Again(Exception):
    """What may go better at the next try; `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "").startswith(_LOOPBACK)


def shown_url(url: str) -> str:
    """Without what may be secret: user, password, and the query of a signed address."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))[:300]


def new_client(patience: Patience, connections: int = 4) -> "httpx.AsyncClient":
    import httpx

    from trilithon import __version__

    return httpx.AsyncClient(
        timeout=httpx.Timeout(patience.silence_seconds, connect=min(patience.silence_seconds, 15.0), pool=None),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        headers={"User-Agent": f"trilithon/{__version__}", "Accept-Encoding": "identity"},
    )


@asynccontextmanager
async def opened(
    client: "httpx.AsyncClient", source: Source, headers: Mapping[str, str], accepted: frozenset[int]
) -> AsyncIterator["httpx.Response"]:
    """The answer, its body still to come. Raises Again, and ModelError or DownloadError for what no second try mends.

    Redirects are followed here, so that `source.headers` go nowhere else and https never becomes http.
    """
    import httpx

    try:
        url = httpx.URL(source.url)
        for _ in range(_MOST_REDIRECTS + 1):
            own = source.headers if _same_origin(url, httpx.URL(source.url)) else {}
            async with client.stream("GET", url, headers={**own, **headers}, follow_redirects=False) as response:
                if response.status_code not in _REDIRECTS:
                    _require_accepted(response, source, accepted)
                    yield response
                    return
                url = _redirected(response, source)
        raise DownloadError(f"{shown_url(source.url)} leads from one address to the next without end; try another one")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ModelError(f"{shown_url(source.url)} is no address to fetch from: {error}; check it") from error
    except httpx.TransportError as error:
        if isinstance(error.__context__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
            raise DownloadError(
                f"{shown_url(source.url)}: its certificate is not trusted ({error}); check the date of this machine"
            ) from error
        raise Again(_reason(error)) from error


async def fetch_small(
    source: Source, *, most_bytes: int, patience: Patience, headers: Mapping[str, str] | None = None
) -> bytes:
    """A file that fits into memory. Raises ModelError and DownloadError."""
    async with new_client(patience) as client:
        failures = 0
        while True:
            try:
                async with opened(client, source, headers or {}, frozenset({200})) as response:
                    return await _body(response, source, most_bytes)
            except Again as again:
                failures += 1
                await asyncio.sleep(next_wait(source, again, failures, patience))


def next_wait(source: Source, again: Again, failures: int, patience: Patience) -> float:
    """Seconds until the next try. Raises DownloadError when patience is at its end."""
    asked = again.wait_seconds
    if asked is not None and asked > patience.longest_asked_seconds:
        raise DownloadError(
            f"{_host(source)} asks to wait {format_duration(asked)} ({again}); run the same command again then"
        ) from again
    if failures >= patience.attempts:
        raise DownloadError(
            f"{_host(source)} failed {failures} times in a row, at last: {again}; run the same command again to go on"
        ) from again
    return patience.wait_seconds(failures, asked)


async def _body(response: "httpx.Response", source: Source, most_bytes: int) -> bytes:
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > most_bytes:
            raise ModelError(
                f"{shown_url(source.url)} is longer than {format_bytes(most_bytes)}; it is not what it should be"
            )
    return bytes(content)


def _require_accepted(response: "httpx.Response", source: Source, accepted: frozenset[int]) -> None:
    status = response.status_code
    if status in accepted:
        return
    if status in _AGAIN:
        raise Again(f"status {status} {response.reason_phrase}".rstrip(), _retry_after(response.headers))
    words = (
        source.words.get(status) or f"{_host(source)} {_WORDS.get(status, 'gives an answer that is not understood')}"
    )
    kind: type[TrilithonError] = Denied if status in (401, 403, 404, 410, 451) else DownloadError
    raise kind(f"{words} (status {status} for {shown_url(source.url)})")


def _redirected(response: "httpx.Response", source: Source) -> "httpx.URL":
    target = response.headers.get("Location")
    if not target:
        raise DownloadError(f"{shown_url(source.url)} leads nowhere (status {response.status_code}); try again later")
    url = response.url.join(target)
    if url.scheme not in ("http", "https") or not url.host:
        raise DownloadError(
            f"{shown_url(source.url)} leads to {url.scheme}:, which is not followed; use its final address"
        )
    if response.url.scheme == "https" and url.scheme == "http":
        raise DownloadError(
            f"{shown_url(source.url)} leads from https to http, which is not followed; try another address"
        )
    return url


def _same_origin(one: "httpx.URL", other: "httpx.URL") -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _reason(error: "httpx.TransportError") -> str:
    import httpx

    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return f"no connection ({str(error) or 'no answer'})"
        case httpx.TimeoutException():
            return "it went silent"
        case httpx.RemoteProtocolError() | httpx.ReadError() | httpx.WriteError():
            return "the connection was cut"
        case _:
            return str(error) or type(error).__name__


def _host(source: Source) -> str:
    return urlsplit(source.url).hostname or "the server"

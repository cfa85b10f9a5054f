"""HTTP requests for files: redirects, headers that are only sent to their host, and errors as one line with the fix."""

import asyncio
import ipaddress
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from trilithon.errors import DownloadError, ModelError, TrilithonError
from trilithon.models.fetch.public_hosts import PublicHosts
from trilithon.packages import install_line
from trilithon.units import format_bytes, format_duration

if TYPE_CHECKING:  # it takes a fifth of a second to import
    import httpx

__all__ = [
    "AccessDenied",
    "DownloadSource",
    "PlainHttp",
    "RetryPolicy",
    "RetryableError",
    "body_chunks",
    "fetch_small",
    "is_loopback",
    "new_client",
    "open_response",
    "redacted_url",
    "retry_delay",
]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})  # 520 to 524: Cloudflare
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_STALL_BYTES_PER_SECOND = 100
# OpenSSL's words for an answer that is not TLS, such as "HTTP/1.1 400".
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_MESSAGES = {
    401: "requires a login; put it into the URL: https://NAME:PASSWORD@HOST/FILE",
    403: "denies access; check your permissions there",
    404: "has no such file; check the name",
    410: "has removed it; look for a newer name",
    416: "cannot send that range of it; try again",
    451: "does not offer it for legal reasons",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to retry: up to `attempts` failures in a row without data, with waits that double. Times in seconds;
    `longest_asked_seconds` is the longest wait that a server may ask for, `silence_seconds` the read timeout,
    `connect_seconds` that of a connection: a missing network is reported within five seconds. `tell` is called with
    a sentence before each wait; it may raise to stop."""

    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    longest_asked_seconds: float = 300.0
    silence_seconds: float = 30.0
    connect_seconds: float = 4.0
    tell: Callable[[str], None] | None = None

    def announce(self, host: str, why: str, failures: int, wait_seconds: float) -> None:
        """Tell a failure and the next try."""
        if self.tell is not None:
            again = f"trying again in {format_duration(max(wait_seconds, 1.0))}"
            self.tell(f"{host}: {why}; {again} (try {failures + 1} of {self.attempts})")

    @property
    def connect_limit_seconds(self) -> float:
        return min(self.silence_seconds, self.connect_seconds)

    def wait_seconds(self, failures: int, asked: float | None) -> float:
        """The wait before the next try: at least what the server asked for, with a random share (jitter)."""
        wait = min(self.first_wait_seconds * 2.0 ** min(failures - 1, 20), self.longest_wait_seconds)
        return max(wait * random.uniform(0.7, 1.0), asked or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadSource:
    """Where a file comes from. `headers` are sent to the host of `url` only; `messages` replace the general errors, by
    status. Plain http needs `insecure` unless the host is this machine. `hosts` restricts the hosts that are asked,
    after redirects too; None restricts nothing. Raises ModelError for other URLs."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[int, str] = field(default_factory=dict)
    insecure: bool = False
    hosts: PublicHosts | None = None

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ModelError(
                "{address} is not a URL of a file; write https://HOST/FILE", address=redacted_url(self.url)
            )
        if not self.may_ask(self.url):
            raise ModelError(
                "{address}: plain http is not protected against changes; write https, or add --insecure",
                address=redacted_url(self.url),
            )

    def may_ask(self, url: str) -> bool:
        """Whether a response cannot be changed on its way, or the user allowed that."""
        return _split(url).scheme == "https" or self.insecure or is_loopback(url)


class AccessDenied(ModelError):
    """The server has no such file, or denies access to it."""


class PlainHttp(DownloadError):
    """The server does not speak TLS."""


class RetryableError(Exception):
    """A failure after which a retry may succeed; `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def is_loopback(url: str) -> bool:
    """Whether the host is this machine: by its address, or by its name (RFC 6761, 6.3). `127.evil.org` is not."""
    host = (_split(url).hostname or "").removesuffix(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def redacted_url(url: str) -> str:
    """The URL without its secrets: user, password, and the query of a signed URL."""
    parts = _split(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))[:300]


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:  # half an IPv6 address, letters that become a / when they are normalised
        raise ModelError(
            "{url!r} is not a URL of a file: {reason}; write https://HOST/FILE", url=url[:80], reason=error
        ) from error


def new_client(source: DownloadSource, retry: RetryPolicy, connections: int = 4) -> "httpx.AsyncClient":
    """A client that uses the proxies and certificates of the environment, and reaches the hosts that `source` may ask.
    Raises DownloadError if those are not valid. The caller closes it."""
    import httpx

    from trilithon import __version__
    from trilithon.models.fetch.checked_transport import CheckedTransport

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        return httpx.AsyncClient(
            transport=None if source.hosts is None else CheckedTransport(source.hosts, limits),
            timeout=httpx.Timeout(retry.silence_seconds, connect=retry.connect_limit_seconds, pool=None),
            limits=limits,
            headers={"User-Agent": f"trilithon/{__version__}", "Accept-Encoding": "identity"},
        )
    except ImportError as error:
        raise DownloadError(
            "a SOCKS proxy needs another package; run: {command}", command=install_line("httpx[socks]")
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise DownloadError(
            "the proxy is not valid: {reason}; check HTTPS_PROXY, ALL_PROXY and NO_PROXY", reason=error
        ) from error
    except OSError as error:
        raise DownloadError(
            "the trusted certificates cannot be read: {reason}; check SSL_CERT_FILE and SSL_CERT_DIR",
            reason=error.strerror or error,
        ) from error


@asynccontextmanager
async def open_response(
    client: "httpx.AsyncClient", source: DownloadSource, headers: Mapping[str, str], accepted: frozenset[int]
) -> AsyncIterator["httpx.Response"]:
    """The response, with its body still to be read. Raises RetryableError, and ModelError or DownloadError for failures
    that a retry cannot fix.

    Redirects are followed here, so that `source.headers` go to no other host and https never becomes http."""
    import httpx

    try:
        url = httpx.URL(source.url)
        for _ in range(_MOST_REDIRECTS + 1):
            source_headers = source.headers if _same_origin(url, httpx.URL(source.url)) else {}
            async with _answer(client, url, {**source_headers, **headers}) as response:
                if response.status_code not in _REDIRECTS:
                    _require_accepted(response, source, accepted)
                    yield response
                    return
                url = _redirected(response, source)
        raise DownloadError("{address} redirects too often; try another URL", address=redacted_url(source.url))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ModelError(
            "{address} is not a URL of a file: {reason}; check it", address=redacted_url(source.url), reason=error
        ) from error
    except httpx.TransportError as error:
        if isinstance(error.__context__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
            raise DownloadError(
                "{address}: its certificate is not trusted ({reason}); check the date of this machine",
                address=redacted_url(source.url),
                reason=error,
            ) from error
        if any(sign in str(error) for sign in _NO_TLS):
            host = url.host[:80]
            raise PlainHttp(
                "{host} speaks plain http, not https; add --insecure if nobody between it and this machine "
                "can change the data",
                host=host,
            ) from error
        raise RetryableError(_reason(error)) from error
    except ssl.SSLError as error:  # damaged data, which no layer in between translates
        raise RetryableError(f"the data was damaged on the way ({error.reason or 'TLS'})") from error


@asynccontextmanager
async def _answer(
    client: "httpx.AsyncClient", url: "httpx.URL", headers: Mapping[str, str]
) -> AsyncIterator["httpx.Response"]:
    """Send the request. The timeouts of the client count from byte to byte, so that slow headers, or "100 Continue"
    without end, need a limit for all of them. Raises RetryableError."""
    limit = client.timeout.read and client.timeout.connect and 2 * client.timeout.read + client.timeout.connect
    try:
        async with asyncio.timeout(limit):
            response = await client.send(client.build_request("GET", url, headers=headers), stream=True)
    except TimeoutError as error:
        raise RetryableError("no data came in time") from error
    try:
        yield response
    finally:
        await response.aclose()


async def fetch_small(
    source: DownloadSource, *, most_bytes: int, retry: RetryPolicy, headers: Mapping[str, str] | None = None
) -> bytes:
    """The content of a file of at most `most_bytes`. Raises ModelError and DownloadError."""
    async with new_client(source, retry) as client:
        failures = 0
        while True:
            try:
                async with open_response(client, source, headers or {}, frozenset({200})) as response:
                    return await _body(response, source, most_bytes, retry)
            except RetryableError as failure:
                failures += 1
                await asyncio.sleep(retry_delay(source, failure, failures, retry))


def retry_delay(source: DownloadSource, failure: RetryableError, failures: int, retry: RetryPolicy) -> float:
    """Seconds until the next try. Raises DownloadError when there were too many failures."""
    asked = failure.wait_seconds
    if asked is not None and asked > retry.longest_asked_seconds:
        raise DownloadError(
            "{host} asks to wait {wait} ({failure}); run the same command again then",
            host=_host(source),
            wait=format_duration(asked),
            failure=failure,
        ) from failure
    if failures >= retry.attempts:
        raise DownloadError(
            "{host} failed {failures} times, the last time: {failure}; run the command again to resume",
            host=_host(source),
            failures=failures,
            failure=failure,
        ) from failure
    wait_seconds = retry.wait_seconds(failures, asked)
    retry.announce(_host(source), str(failure), failures, wait_seconds)
    return wait_seconds


async def body_chunks(response: "httpx.Response", retry: RetryPolicy) -> AsyncIterator[bytes]:
    """The body in chunks. Raises RetryableError when it is too slow for long. The time that the caller takes between
    two chunks does not count."""
    waited, received = 0.0, 0
    stream = response.aiter_raw()
    while True:
        asked = time.monotonic()
        chunk = await anext(stream, b"")
        waited += time.monotonic() - asked
        if not chunk:
            return
        received += len(chunk)
        if waited > retry.silence_seconds:
            if received < waited * _STALL_BYTES_PER_SECOND:
                raise RetryableError("the data comes too slowly")
            waited, received = 0.0, 0
        yield chunk


async def _body(response: "httpx.Response", source: DownloadSource, most_bytes: int, retry: RetryPolicy) -> bytes:
    content = bytearray()
    async for chunk in body_chunks(response, retry):
        content += chunk
        if len(content) > most_bytes:
            raise ModelError(
                "{address} is longer than {size}; check its name",
                address=redacted_url(source.url),
                size=format_bytes(most_bytes),
            )
    return bytes(content)


def _require_accepted(response: "httpx.Response", source: DownloadSource, accepted: frozenset[int]) -> None:
    status = response.status_code
    if status in accepted:
        return
    if status in _AGAIN:
        raise RetryableError(f"status {status} {response.reason_phrase}".rstrip(), _retry_after(response.headers))
    message = source.messages.get(status) or f"{_host(source)} {_MESSAGES.get(status, 'sends an unexpected answer')}"
    kind: type[TrilithonError] = AccessDenied if status in (401, 403, 404, 410, 451) else DownloadError
    raise kind(f"{message} (status {status} for {redacted_url(source.url)})")


def _redirected(response: "httpx.Response", source: DownloadSource) -> "httpx.URL":
    target = response.headers.get("Location")
    if not target:
        raise DownloadError(
            "{address} redirects without a target (status {status_code}); try again later",
            address=redacted_url(source.url),
            status_code=response.status_code,
        )
    url = response.url.join(target)
    if url.scheme not in ("http", "https") or not url.host:
        raise DownloadError(
            "{address} redirects to {scheme}:, which is not followed; use its final URL",
            address=redacted_url(source.url),
            scheme=url.scheme,
        )
    if response.url.scheme == "https" and url.scheme == "http":
        raise DownloadError(
            "{address} redirects from https to http, which is not followed; try another URL",
            address=redacted_url(source.url),
        )
    if not source.may_ask(str(url)):
        raise DownloadError(
            "{address} redirects to plain http, which is not followed; allow it with --insecure",
            address=redacted_url(source.url),
        )
    return url


def _same_origin(one: "httpx.URL", other: "httpx.URL") -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The header in seconds, also when it is a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _reason(error: "httpx.TransportError") -> str:
    import httpx

    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return f"no connection ({str(error) or 'no answer'})"
        case httpx.TimeoutException():
            return "no data came in time"
        case httpx.RemoteProtocolError() | httpx.ReadError() | httpx.WriteError():
            return "the connection was cut"
        case _:
            return str(error) or type(error).__name__


def _host(source: DownloadSource) -> str:
    return _split(source.url).hostname or "the server"

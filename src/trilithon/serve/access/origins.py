"""Which web pages may call this server: none but its own, unless their origin was given (CORS, and CSRF with it).

A page needs no leave of ours to *send* a simple POST, only to read the answer; so a foreign origin is turned away
before anything is done for it."""

import re
from collections.abc import Sequence
from typing import Final

from trilithon.errors import UserError

__all__ = ["LOCAL_APPS", "Origins", "answer_headers", "preflight_headers"]

Headers = list[tuple[bytes, bytes]]

# "*", "null", or SCHEME://HOST[:PORT] with * for the whole host, its first labels, or the port.
_PATTERN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\*|(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]|)(:(\d{1,5}|\*))?")
_METHODS = re.compile(r"[A-Z]{1,16}")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_EXPOSED = b"X-Request-Id, X-Trilithon-Ignored, Retry-After"
_REMEMBERED_SECONDS = b"600"
_HERE = ("localhost", "127.0.0.1", "0.0.0.0")


# As Ollama's AllowedOrigins (envconfig/config.go, v0.33): development servers and desktop programs of this machine.
LOCAL_APPS: Final = (
    *(f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in _HERE for port in ("", ":*")),
    *("app://*", "file://*", "file://", "tauri://*", "vscode-webview://*", "vscode-file://*"),
)


class Origins:
    """`given` as browsers write them: https://chat.example.org, http://localhost:*, vscode-webview://*, or *."""

    def __init__(self, given: Sequence[str] = ()):
        for origin in given:
            if not _PATTERN.fullmatch(origin.lower()):
                raise UserError(
                    f"{origin!r} is not an origin; write SCHEME://HOST[:PORT] without a path, as browsers do, or *"
                )
        self._patterns = [re.compile(_expression(origin.lower())) for origin in given]

    def allows(self, origin: str, host: str) -> bool:
        """`host` is the `Host` header: a page may always call the server that it came from."""
        origin = origin.lower()
        scheme, _, place = origin.partition("://")
        if scheme in ("http", "https") and place == host.strip().lower() != "":
            return True
        return any(pattern.fullmatch(origin) for pattern in self._patterns)


def answer_headers(origin: str) -> Headers:
    """What lets the page of an allowed origin read the answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight_headers(origin: str, method: str, names: str, *, private_network: bool) -> Headers:
    """`method` and `names` (of headers) are what the page wants to send; what is garbled is not granted."""
    granted = answer_headers(origin)
    if _METHODS.fullmatch(method):
        granted.append((b"access-control-allow-methods", method.encode()))
    if names and _HEADER_NAMES.fullmatch(names):
        granted.append((b"access-control-allow-headers", names.encode()))
    if private_network:
        granted.append((b"access-control-allow-private-network", b"true"))
    return [*granted, (b"access-control-max-age", _REMEMBERED_SECONDS)]


def _expression(pattern: str) -> str:
    if pattern == "*":
        return ".*"
    port = r"\d{1,5}" if pattern.endswith(":*") else ""
    head = pattern.removesuffix("*") if port else pattern
    return re.escape(head).replace(r"\*", r"[^/]+") + port

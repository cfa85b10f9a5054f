"""Reverse proxies in front of the server: whose word on the client counts, and the path below which it is published."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from trilithon.errors import UserError

__all__ = ["UNIX", "BehindProxies", "checked_proxies", "checked_root_path", "is_forwarded"]

UNIX = "unix"
"""In place of an address: a client of the Unix socket."""

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
# Beginnings of the server's own paths: there, a request with the root path and one without could not be told apart.
_TAKEN = frozenset({"_nicegui", "_nicegui_ws", "_pages", "api", "board", "models", "results", "v1"})
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})


class BehindProxies:
    """`trusted` are addresses, networks or UNIX: only their X-Forwarded-For and X-Forwarded-Proto count. `root_path` is
    the path of the pages and the API at the proxy, which may pass it on or not; empty for none."""

    def __init__(self, app: ASGIApp, *, trusted: Sequence[str], root_path: str):
        self._root_path = checked_root_path(root_path)
        self._trusts_unix = UNIX in trusted
        proxies = checked_proxies(trusted)
        self._app = cast(ASGIApp, ProxyHeadersMiddleware(app, proxies)) if proxies else app  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            if self._trusts_unix and not scope.get("client"):
                scope["client"] = (UNIX, 0)
            # NiceGUI would put it in front of the links of its pages; --root-path says it once, for pages and API.
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"x-forwarded-prefix"]
            if self._root_path:
                _strip(scope, self._root_path)
        await self._app(scope, receive, send)


def checked_root_path(text: str) -> str:
    """Without a slash at its end. Raises UserError."""
    path = text.strip().rstrip("/")
    if path and (not _ROOT_PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise UserError(f"--root-path {text}: write a path such as /trilithon")
    if path.split("/")[1:2] and path.split("/")[1] in _TAKEN:
        raise UserError(f"--root-path {text}: the server has a path of this name; choose another, such as /trilithon")
    return path


def checked_proxies(addresses: Iterable[str]) -> list[str]:
    """As uvicorn reads them. Raises UserError."""
    checked = []
    for text in addresses:
        try:
            network = ipaddress.ip_network(text.strip("[]"), strict=False)
        except ValueError as error:
            if text != UNIX:
                raise UserError(
                    f"--trusted-proxy {text}: write the proxy's address, a network such as 10.0.0.0/8, or {UNIX}"
                ) from error
            checked.append(UNIX)
            continue
        checked.append(str(network) if network.num_addresses > 1 else str(network.network_address))
    return checked


def is_forwarded(scope: Scope) -> bool:
    """Whether a proxy says that it asks for somebody else."""
    return any(name in _FORWARDED for name, _ in scope["headers"])


def _strip(scope: Scope, root_path: str) -> None:
    """The path as it is without proxy; where it begins with the root path, the proxy passed that on. However often:
    Starlette's router takes it off once more, and would go elsewhere than the guard looked."""
    scope["root_path"] = root_path
    while scope["path"] == root_path or scope["path"].startswith(root_path + "/"):
        scope["path"] = scope["path"][len(root_path) :] or "/"
        raw: bytes = scope.get("raw_path") or b""
        if raw.startswith(root_path.encode()):
            scope["raw_path"] = raw[len(root_path) :] or b"/"

"""What a page says behind a reverse proxy that leaves out headers: which one is missing, and how it is passed on."""

import html
import logging

from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from trilithon.web.texts import Texts

__all__ = ["lacks_upgrade", "proxy_hint", "refuse_upgrade"]

_NGINX = """proxy_http_version 1.1;
proxy_set_header Host $http_host;
proxy_set_header Upgrade $http_upgrade;
proxy_set_header Connection "upgrade";"""
_MISSING = (
    "the reverse proxy does not pass on the header Upgrade, so pages are updated by slower requests; in nginx: "
    'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
)
_log = logging.getLogger(__name__)


def proxy_hint(request: Request, text: Texts) -> str:
    """A template that static/pages.js shows where the server refuses the page's own requests for their origin."""
    host = request.headers.get("host", "")
    title, lead = text("frame.proxy_title"), text("frame.proxy_lead", told=host, host="Host", upgrade="Upgrade")
    nginx, caddy = text("frame.proxy_nginx", name="nginx"), text("frame.proxy_caddy", name="Caddy")
    return (
        f'<template id="proxy-hint" data-host="{html.escape(host)}" '
        f'data-root="{html.escape(request.scope.get("root_path", ""))}"><main class="proxy-hint" role="alert">'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p><p>{html.escape(nginx)}</p>"
        f"<pre>{html.escape(_NGINX)}</pre><p>{html.escape(caddy)}</p></main></template>"
    )


def lacks_upgrade(scope: Scope) -> bool:
    """Whether a request was a WebSocket's before a proxy dropped the header that says so."""
    return (
        scope["type"] == "http"
        and scope["path"].startswith("/_nicegui_ws/")
        and b"transport=websocket" in scope.get("query_string", b"")
        and "upgrade" not in Headers(scope=scope)
    )


async def refuse_upgrade(scope: Scope, receive: Receive, send: Send) -> None:
    """426, and a warning in the log. socket.io goes on with requests of plain HTTP."""
    _log.warning(_MISSING)
    answer = PlainTextResponse(f"{_MISSING}\n", status_code=426, headers={"Upgrade": "websocket"})
    await answer(scope, receive, send)

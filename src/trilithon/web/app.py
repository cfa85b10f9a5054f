"""The pages on the server's own application: beside the API, at its port, behind its door, in its event loop."""

import copy
import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from fastapi import FastAPI, Request
from nicegui import app as pages_app
from nicegui import ui
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilithon.serve.access.scopes import is_allowed, scope_of_page
from trilithon.serve.http.bare_page import wants_page
from trilithon.web import login
from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import at
from trilithon.web.frame import APPEARANCES, PATHS, Appearance, frame
from trilithon.web.proxy import lacks_upgrade, proxy_hint, refuse_upgrade
from trilithon.web.results import downloads
from trilithon.web.texts import Texts, language_of, texts_for

__all__ = ["PAGES", "install"]

Build = Callable[[AppContext, PageSession, Texts], Awaitable[None]]

PAGES = {
    "chat": "trilithon.web.chat.page:build",
    "board": "trilithon.web.board.page:build",
    "models": "trilithon.web.models.page:build",
    "results": "trilithon.web.results.page:build",
    "atlas": "trilithon.web.atlas.page:build",
}
"""What builds each page, imported when it is first asked for."""

_STATIC = Path(__file__).parent / "static"
_ASSETS = "/_pages"
_OWN_PREFIXES = ("/_nicegui/", "/_nicegui_ws/", f"{_ASSETS}/")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
]
_RECONNECT_SECONDS = 10.0
_LONGEST_BUILD_SECONDS = 30.0
_QUASAR_LANGUAGES = {"en": "en-US", "ru": "ru"}


def install(app: FastAPI, context: AppContext) -> None:
    """Once all routes of the API are there. NiceGUI keeps its state in its modules, so a process has one server with
    pages."""
    _forget_last()
    pages_app.add_static_files(_ASSETS, _STATIC)
    for name in PAGES:
        _add_page(name, context)
    app.include_router(downloads.router_of(context))
    app.include_router(login.router_of(app.state.sessions))
    app.state.sessions.is_pages = _belongs_to_pages
    ui.run_with(
        app,
        title="Trilithon",
        favicon=_STATIC / "icon.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
        reconnect_timeout=_RECONNECT_SECONDS,
        message_history_length=100,
        cache_control_directives="private, max-age=86400",
    )
    _in_front(app)


def _forget_last() -> None:
    """Of an application that this process served before."""
    pages_app.middleware_stack = None
    pages_app.user_middleware.clear()


def _in_front(app: FastAPI) -> None:
    """A browser's request for a page is the pages', whatever the API has at that path; nothing else is."""
    mounts = [route for route in app.router.routes if isinstance(route, Mount) and route.app is pages_app]
    for mount in mounts:
        app.router.routes.remove(mount)
    app.router.routes.insert(0, cast(BaseRoute, _PagesMount("/", app=_with_policy(pages_app), name="pages")))


def _with_policy(app: ASGIApp) -> ASGIApp:
    """Nothing of another host's, and no page of theirs around ours. NiceGUI's own scripts stand in the page, and Vue
    makes functions of its templates."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if lacks_upgrade(scope):
            await refuse_upgrade(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        # Mounts within NiceGUI's application find their files below the whole path alone.
        root = scope.get("root_path", "")
        await app({**scope, "path": root + scope["path"]} if root else scope, receive, sending)

    return guarded


def _belongs_to_pages(scope: Scope) -> bool:
    """A browser's own requests, for which a cookie may stand in place of a key: pages, what they are made of, and
    files of results, none of which changes anything."""
    return _is_pages(scope) or (scope["path"].startswith("/results/") and scope.get("method") in ("GET", "HEAD"))


class _PagesMount(Mount):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not _is_pages(scope):
            return Match.NONE, {}
        return super().matches(scope)


def _is_pages(scope: Scope) -> bool:
    path = scope["path"]
    if path.startswith(_OWN_PREFIXES) or path == "/favicon.ico":
        return True
    return path in PATHS.values() and scope["type"] == "http" and scope["method"] == "GET" and wants_page(scope)


def _add_page(name: str, context: AppContext) -> None:
    @ui.page(PATHS[name], response_timeout=_LONGEST_BUILD_SECONDS)
    async def page(request: Request) -> None:
        session = _session(request)
        text = texts_for(session.language)
        appearance = _appearance(request)
        _set_out(name, text, appearance)
        build = _builder(name)
        leaving = bool(session.key_name)
        pages = [page for page, path in PATHS.items() if is_allowed(session.key_scope, scope_of_page(path))]
        with frame(text, active=name, appearance=appearance, leaving=leaving, pages=pages):
            await build(context, session, text)


def _set_out(name: str, text: Texts, appearance: Appearance) -> None:
    """Language, light or dark, and title belong to NiceGUI's page, which all who look at it share: each gets a copy."""
    client = ui.context.client
    client.page = copy.copy(client.page)
    client.page.language = _QUASAR_LANGUAGES[text.language]  # type: ignore[assignment]
    client.page.dark = None if appearance == "auto" else appearance == "dark"
    client.title = f"{text(f'frame.{name}')} - Trilithon"
    ui.add_head_html(f'<link rel="stylesheet" href="{at(_ASSETS)}/pages.css">')
    ui.add_head_html(f'<script defer src="{at(_ASSETS)}/pages.js"></script>')
    ui.add_head_html(proxy_hint(client.request, text))


def _session(request: Request) -> PageSession:
    chosen = request.cookies.get("trilithon-language", "")
    return PageSession(
        key_name=getattr(request.state, "key_name", ""),
        key_scope=getattr(request.state, "key_scope", "admin"),
        address=request.client.host if request.client else "local",
        language=language_of(chosen, request.headers.get("accept-language", "")),
    )


def _appearance(request: Request) -> Appearance:
    chosen = request.cookies.get("trilithon-appearance", "")
    return next((name for name in APPEARANCES if name == chosen), "auto")


def _builder(name: str) -> Build:
    module, _, function = PAGES[name].partition(":")
    return cast(Build, getattr(importlib.import_module(module), function))

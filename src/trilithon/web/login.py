"""Where a browser shows a key: one page without scripts, and a cookie that stands for the key from then on."""

import html
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from trilithon.serve.access.limits import caller_at
from trilithon.serve.access.sessions import COOKIE, LOGIN_PATH, LOGOUT_PATH, Sessions, token_in
from trilithon.web.frame import PATHS
from trilithon.web.texts import Texts, language_of, texts_for

__all__ = ["router_of"]

_MOST_BYTES = 4096
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_STYLE = """
:root { color-scheme: light dark; --ground: #f7f8fa; --surface: #fff; --line: #8a94a2; --text: #1b2330;
  --muted: #525e6e; --accent: #2f5d93; --on: #fff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --surface: #1b212a; --line: #6b7787; --text: #e6eaf0;
  --muted: #a6b1c0; --accent: #8fbcf0; --on: #10151c; --bad: #ff9b92; } }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { box-sizing: border-box; width: min(26rem, 100vw - 2rem); padding: 1.5rem; background: var(--surface);
  border: 1px solid var(--line); border-radius: 10px; }
h1 { margin: 0 0 .5rem; font-size: 1.35rem; } p { margin: 0 0 1rem; } label { display: block; font-weight: 600; }
input, button { box-sizing: border-box; width: 100%; padding: .6rem .75rem; font: inherit; border-radius: 8px; }
input { border: 1px solid var(--line); background: var(--ground); color: var(--text); margin: .25rem 0 1rem; }
button { border: 0; background: var(--accent); color: var(--on); font-weight: 600; cursor: pointer; }
.muted { color: var(--muted); margin: 1.25rem 0 0; } .bad { color: var(--bad); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""


def router_of(sessions: Sessions) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN_PATH)
    async def form(request: Request) -> Response:
        return _page(_text(request), _target(request.query_params.get("next", "")), _root(request))

    @router.post(LOGIN_PATH)
    async def enter(request: Request) -> Response:
        text, fields = _text(request), await _fields(request)
        target, root = _target(fields.get("next", "")), _root(request)
        address = caller_at(request.client.host) if request.client else "local"
        wait_seconds = sessions.tries.take(address, time.monotonic_ns())
        if wait_seconds > 0:
            return _page(text, target, root, text("frame.login_slow", seconds=f"{wait_seconds:.0f}"), 429)
        token = sessions.open(fields.get("key", "").strip())
        if token is None:
            return _page(text, target, root, text("frame.login_wrong"), 401)
        answer = RedirectResponse(root + target, status_code=303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, max_age=30 * 24 * 3600)
        return answer

    @router.post(LOGOUT_PATH)
    async def leave(request: Request) -> Response:
        sessions.close(token_in(request.headers))
        answer = RedirectResponse(_root(request) + LOGIN_PATH, status_code=303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _text(request: Request) -> Texts:
    chosen = request.cookies.get("trilithon-language", "")
    return texts_for(language_of(chosen, request.headers.get("accept-language", "")))


def _root(request: Request) -> str:
    """The path of the pages at a reverse proxy."""
    return str(request.scope.get("root_path", ""))


def _target(path: str) -> str:
    """Where to go then: one of the pages, and nowhere else."""
    return path if unquote(path) in PATHS.values() else "/"


async def _fields(request: Request) -> Mapping[str, str]:
    """None of a form that is too long for a key: whoever sends it has shown none, and gets no memory for it."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(content.decode("utf-8", "replace")).items()}


def _page(text: Texts, target: str, root: str, problem: str = "", status: int = 200) -> HTMLResponse:
    says = {name: html.escape(text(f"frame.login_{name}")) for name in ("title", "lead", "key", "enter", "how")}
    told = f'<p class="bad" role="alert">{html.escape(problem)}</p>' if problem else ""
    content = f"""<!doctype html>
<html lang="{text.language}"><head><meta charset="utf-8"><title>{says["title"]} - Trilithon</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><main><h1>{says["title"]}</h1><p>{says["lead"]}</p>{told}
<form method="post" action="{root}{LOGIN_PATH}"><input type="hidden" name="next" value="{quote(target)}">
<label for="key">{says["key"]}</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button type="submit">{says["enter"]}</button></form>
<p class="muted">{says["how"]}<br><code>trilithon key add NAME</code></p></main></body></html>"""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store", "Referrer-Policy": "same-origin"}
    return HTMLResponse(content, status_code=status, headers=headers)

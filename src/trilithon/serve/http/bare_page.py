"""What a person sees who opens the address of a server without web pages in a browser."""

import html
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import Scope

from trilithon.tables import table_beside

__all__ = ["bare_page", "wants_page"]

_TEXTS: Mapping[str, Mapping[str, str]] = table_beside(__file__, "bare_page.toml")
_HEADERS = {
    "Vary": "Accept, Accept-Language",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def wants_page(scope: Scope) -> bool:
    """Browsers name HTML in `Accept` when they go to a page; clients of the API, which share some paths, do not."""
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in scope["headers"])


def bare_page(request: Request) -> HTMLResponse:
    """What runs here, how to use it, and how to get the pages; in Russian where the browser prefers it."""
    language = "ru" if request.headers.get("accept-language", "").strip().lower().startswith("ru") else "en"
    text = {name: html.escape(line) for name, line in _TEXTS[language].items()}
    address = html.escape(str(request.base_url).rstrip("/"))
    return HTMLResponse(
        f"""<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><title>Trilithon</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style></head>
<body><h1>{text["title"]}</h1><p>{text["api"]}</p>
<pre>OLLAMA_HOST={address}
OPENAI_BASE_URL={address}/v1
ANTHROPIC_BASE_URL={address}</pre>
<p>{text["terminal"]} <code>trilithon run demo</code></p>
<p>{text["pages"]} <code>make install</code></p></body></html>""",
        headers=_HEADERS,
    )

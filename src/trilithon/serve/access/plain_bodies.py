"""A body is JSON, whatever its sender calls it: `curl -d` says that it is a form, some scripts say nothing.

Ollama and llama-server take both, and their examples are written that way. It lets no web page in: one that sends a
simple POST is known by its origin (see `origins`)."""

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["PlainBodies"]

_CALLED_SO = (b"application/x-www-form-urlencoded", b"text/plain")
_JSON = (b"content-type", b"application/json")


class PlainBodies:
    """Puts JSON's media type in place of none, of a form's and of plain text's."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            said = [value.strip().lower() for name, value in headers if name == b"content-type"]
            if all(value.startswith(_CALLED_SO) for value in said):
                # In place: what the router writes into the scope is read outside (see `observing`).
                scope["headers"] = [*(header for header in headers if header[0] != b"content-type"), _JSON]
        await self._app(scope, receive, send)

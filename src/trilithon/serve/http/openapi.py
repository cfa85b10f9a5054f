"""The OpenAPI document as it is true of this server: what the door answers stands with every route behind it."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

__all__ = ["ERRORS", "STATUSES", "STREAMED", "describe"]

STATUSES: Final = {
    400: "a field is invalid or not supported",
    401: "missing or invalid API key",
    403: "origin or host name not allowed",
    404: "no such model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is compressed",
    429: "too many requests",
    500: "the model could not be loaded",
    501: "not supported by the engine",
    502: "the engine failed",
    503: "busy; retry after Retry-After seconds",
    507: "the disk is full",
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, description in STATUSES.items()
}
STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "the answer", "content": {"application/json": {}, "text/event-stream": {}}},
    **ERRORS,
}
# Before a route is reached: no key, a foreign host or origin, a body that stops coming or is too long, too many
# requests. See `security`.
_EVERYWHERE = (414, 431)
_AT_THE_DOOR = (401, 403, 408, 413, 415, 429)
_PUBLIC = ("/", "/health", "/v1/health")
# FastAPI's own word for a body that does not fit, which is 400 here, as with the servers whose dialects these are.
_NEVER = ("422",)
_NEVER_NAMED = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI) -> None:
    """Once all routes are there."""
    made: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not made:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            made.update(_true(schema))
        return made

    app.openapi = document  # type: ignore[method-assign] # FastAPI's own way


def _true(document: dict[str, Any]) -> dict[str, Any]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            answers = operation["responses"]
            for never in _NEVER:
                answers.pop(never, None)
            for status in (*_EVERYWHERE, *(() if path in _PUBLIC else _AT_THE_DOOR)):
                answers.setdefault(str(status), {"description": HTTPStatus(status).phrase})
    for name in _NEVER_NAMED:
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document

"""What the gateway answers itself: lists of all boards' models, its health, and refusals in the words of each API."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trilithon.fleet.error_events import Problem, error_answer
from trilithon.fleet.http_parts import Broken, Head, content, read_head
from trilithon.fleet.state import BoardState, plain_name

__all__ = ["answer_to", "answering_at"]

States = Callable[[], Mapping[str, BoardState]]

_REFUSALS = {
    "browser": Problem(
        message="the gateway takes no requests from web pages; put a page's own server in between",
        status=403,
        kind="permission_error",
    ),
    "key": Problem(
        message="an API key is required: Authorization: Bearer KEY, or x-api-key: KEY; make one on the gateway: "
        "trilithon key add NAME",
        status=401,
        kind="authentication_error",
        code="invalid_api_key",
    ),
    "unload": Problem(
        message="the gateway unloads no models; ask the board: TRILITHON_HOST=URL trilithon stop MODEL",
        status=400,
        kind="invalid_request_error",
    ),
}
_MOST_NAMES = 12
_LIMIT_BYTES = 1 << 17  # of a head, as HAProxy's tune.bufsize


@contextlib.asynccontextmanager
async def answering_at(socket: Path, states: States) -> AsyncIterator[None]:
    """On a Unix socket, one request for each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(Broken, ConnectionError):
                head = await read_head(reader)
                if head.is_chunked or head.length:
                    async for _ in content(reader, head):
                        pass
                writer.write(answer_to(head, states()))
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, str(socket), limit=_LIMIT_BYTES, backlog=2048)
    try:
        yield
    finally:
        server.close()


def answer_to(head: Head, states: Mapping[str, BoardState]) -> bytes:
    """The whole HTTP answer."""
    method, path = head.first.split(" ", 1)[0], head.path
    if refusal := _REFUSALS.get(head.get("x-trilithon-refusal")):
        return error_answer(path, refusal)
    known = [state for state in states.values() if state.models]
    if method in ("GET", "HEAD"):
        if path == "/":
            return _answered(b"Ollama is running", method, "text/plain; charset=utf-8")
        body = _listed(path, known, states)
        if body is not None:
            return _answered(json.dumps(body, ensure_ascii=False).encode(), method)
        if path in ("/health", "/v1/health"):
            return error_answer(path, Problem(message="no board is known yet", status=503, retry_after_seconds=5))
    return error_answer(path, _not_routed(head, path, known))


def _listed(path: str, known: Sequence[BoardState], states: Mapping[str, BoardState]) -> Any:
    """None for what is not answered here."""
    rows: dict[str, dict[str, Any]] = {}
    for state in known:
        for model in state.models:
            if not model.refusal:
                row = rows.setdefault(plain_name(model.name), {**model.row, "boards": []})
                row["boards"].append(state.name)
    match path:
        case "/health" | "/v1/health":
            return {"status": "ok"} if known else None
        case "/api/tags":
            return {"models": list(rows.values())}
        case "/api/ps":
            loaded = {model.name for state in known for model in state.models if model.is_loaded}
            return {"models": [row for row in rows.values() if row.get("name") in loaded]}
        case "/api/version":
            return {"version": next((state.api_version for state in known), ""), "trilithon": "gateway"}
        case "/v1/models" | "/models":
            return {"object": "list", "data": [_openai_row(row) for row in rows.values()]}
        case "/api/fleet":
            return {"boards": [{"name": name, **state.as_json()} for name, state in states.items()]}
    name = path.removeprefix("/v1/models/")
    return _openai_row(rows[plain_name(name)]) if name != path and plain_name(name) in rows else None


def _openai_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row.get("name"), "object": "model", "created": 0, "owned_by": "trilithon", "boards": row["boards"]}


def _not_routed(head: Head, path: str, known: Sequence[BoardState]) -> Problem:
    names = sorted({model.name for state in known for model in state.models if not model.refusal})
    listed = ", ".join([*names[:_MOST_NAMES], *(["…"] if len(names) > _MOST_NAMES else [])]) or "none"
    if model := head.get("x-trilithon-model"):
        message = f"no board has the model {model[:100]!r}; there are: {listed}"
        return Problem(message=message, status=404, kind="not_found_error", code="model_not_found")
    if head.get("x-trilithon-for-model"):
        message = f"model is required in the first 128 KiB of the body, which is JSON; there are: {listed}"
        return Problem(message=message, status=400, kind="invalid_request_error")
    message = f"the gateway does not route {path[:100]}; ask the board itself, see: trilithon fleet list"
    return Problem(message=message, status=404, kind="not_found_error")


def _answered(body: bytes, method: str, content_type: str = "application/json") -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)

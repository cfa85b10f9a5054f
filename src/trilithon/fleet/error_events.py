"""What the gateway says in place of a board, in the words of the API that was asked.

The serving packages have the same forms; they load ten times the memory, and the gateway's process needs none of it."""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Problem", "error_answer", "error_event", "is_stream"]

_STREAMS = ("text/event-stream", "application/x-ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`kind` is OpenAI's word for it, `code` the one that its clients look for, or empty. `retry_after_seconds` is set
    where the same request may succeed later."""

    message: str
    status: int = 502
    kind: str = "server_error"
    code: str = ""
    retry_after_seconds: int | None = None


def is_stream(content_type: str) -> bool:
    return content_type.lower().startswith(_STREAMS)


def error_body(path: str, problem: Problem) -> dict[str, Any]:
    if path.startswith("/api/"):
        return {"error": problem.message}
    if path.startswith("/v1/messages"):
        kind = "api_error" if problem.kind == "server_error" else problem.kind
        return {"type": "error", "error": {"type": kind, "message": problem.message}}
    error = {"message": problem.message, "type": problem.kind, "param": None, "code": problem.code or None}
    return {"error": error}


def error_event(path: str, problem: Problem) -> bytes:
    """The last event of a stream that breaks off."""
    if path.startswith("/api/"):
        return _json(error_body(path, problem)) + b"\n"
    if path.startswith("/v1/messages"):
        return b"event: error\ndata: " + _json(error_body(path, problem)) + b"\n\n"
    if path.startswith("/v1/responses"):  # OpenAI's event for what is not the response's own failure
        event = {"type": "error", "code": "server_error", "message": problem.message, "param": None}
        return b"event: error\ndata: " + _json(event) + b"\n\n"
    return b"data: " + _json(error_body(path, problem)) + b"\n\n"


def error_answer(path: str, problem: Problem) -> bytes:
    """A whole HTTP answer, after which the connection is closed."""
    body = _json(error_body(path, problem))
    after = problem.retry_after_seconds
    retry = "" if after is None else f"Retry-After: {after}\r\n"
    head = f"HTTP/1.1 {problem.status} Error\r\nContent-Type: application/json\r\n{retry}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

"""Around everything: each request gets an id that client and log share, a line in the log, and is counted."""

import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilithon.runtime.relay import DirectWriter
from trilithon.serve.http.early_errors import refuse
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.protocol import OUTLET
from trilithon.serve.monitoring.logs import log_request
from trilithon.serve.monitoring.metrics import Metrics
from trilithon.serve.request_record import RequestRecord, recording

__all__ = ["Observed"]

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STREAMS = (b"text/event-stream", b"application/x-ndjson")
# nginx's number for a client that left before there was an answer.
_CLIENT_LEFT = 499


class Observed:
    """Leaves `request_id` in the request's state, and answers 500 in the dialect where something breaks inside."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(
            request_id=_request_id(scope), method=scope["method"], path=scope["path"], began_ns=time.monotonic_ns()
        )
        scope.setdefault("state", {})["request_id"] = record.request_id
        watched = _ObservedAnswer(send, record)
        if OUTLET in scope:
            scope[OUTLET] = _ObservedWriter(scope[OUTLET], record)
        with recording(record), self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            except Exception as error:
                record.error = type(error).__name__
                if not record.status:
                    await refuse(scope, watched, _broken(record))
                raise
            finally:
                self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.ended_ns = time.monotonic_ns()
        record.key_name = scope["state"].get("key_name", "")
        record.route = getattr(scope.get("route"), "path", "")
        record.status = record.status or _CLIENT_LEFT
        self._metrics.count(record)
        log_request(record)


class _ObservedAnswer:
    """`send`, with what passes written down."""

    def __init__(self, send: Send, record: RequestRecord):
        self._send = send
        self._record = record

    async def __call__(self, message: Message) -> None:
        record = self._record
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = list(message.get("headers", ()))
            record.streamed = _is_stream(headers)
            message = {**message, "headers": [*headers, (b"x-request-id", record.request_id.encode())]}
        elif message["type"] == "http.response.body":
            record.sent(message.get("body", b""))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            record.whole = True


class _ObservedWriter:
    def __init__(self, outlet: DirectWriter, record: RequestRecord):
        self._outlet = outlet
        self._record = record

    def free(self) -> bool:
        return self._outlet.free()

    def write(self, content: bytes) -> None:
        self._record.sent(content)
        self._outlet.write(content)


def _request_id(scope: Scope) -> str:
    """The client's own where it is harmless in a header and in a log."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else secrets.token_hex(8)


def _is_stream(headers: Any) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(_STREAMS) for name, value in headers)


def _broken(record: RequestRecord) -> ApiError:
    return ApiError(f"internal error; see the server's log, request {record.request_id}", status=500, kind="api_error")

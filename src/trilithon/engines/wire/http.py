"""HTTP over a Unix socket for servers that are written in Python: event streams, cancellation, immediate exit."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "WireError", "event", "read_body", "saved_name", "serve", "until_closed"]

_T = TypeVar("_T")


class WireError(Exception):
    """An error answer: HTTP status, message, llama-server's `type` of the error, and further fields."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", **more: int | str):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": status, "message": message, "type": kind, **more}}


async def read_body(request: Request) -> dict[str, Any]:
    content = await request.body()
    try:
        body = json.loads(content)
        if b"\\u" in content:  # an escape can be half of a surrogate pair, which UTF-8 cannot encode
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WireError(500, f"the request is not JSON: {error}", "server_error") from error
    if not isinstance(body, dict):
        raise WireError(400, "the request must be a JSON object")
    return body


def saved_name(body: Mapping[str, Any]) -> str:
    """The file name of a saved slot, without a folder."""
    name = body.get("filename")
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or "\0" in name:
        raise WireError(400, "Invalid filename")
    return name


def event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class EventStream(Response):
    """Server-sent events. It ends at once when the client disconnects, also while there is nothing to send."""

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_closed(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_closed(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`, or None when the client closed the connection first; then `work` is cancelled."""

    async def closed() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    job, disconnect = asyncio.create_task(work), asyncio.create_task(closed())
    try:
        await asyncio.wait((job, disconnect), return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else None
    finally:
        job.cancel()
        disconnect.cancel()
        await asyncio.gather(job, disconnect, return_exceptions=True)


class _ChildServer(uvicorn.Server):
    """Exits with code 0 on a signal at once, like llama-server. Uvicorn would wait for open requests, and a hung one
    never ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 0)
        yield


def serve(app: Starlette, socket: Path) -> None:
    """Serves until SIGTERM or SIGINT, which end the process at once."""
    config = uvicorn.Config(
        app, uds=str(socket), lifespan="off", ws="none", loop="asyncio", http="h11", log_config=None, access_log=False
    )
    asyncio.run(_ChildServer(config).serve())

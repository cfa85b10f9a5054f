"""An answer of the door itself: the request never reaches a route, but its client is told in its own dialect."""

import asyncio
import json
import math

from starlette.types import Message, Receive, Scope, Send

from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError

__all__ = ["refuse"]

# How long to go on taking what a client still sends: closing at once would reset the connection, and the client would
# see that in place of the answer.
_LINGER_SECONDS = 2.0


async def refuse(scope: Scope, send: Send, problem: ApiError, lingering: Receive | None = None) -> None:
    """With `lingering` (the connection's own `receive`) the rest of the body is thrown away, and the connection
    closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(problem)[:120]})
        return
    body = json.dumps(error_body(scope["path"], problem), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if problem.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="trilithon"'))
    if problem.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(problem.retry_after_seconds))).encode()))
    if lingering is not None:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": lingering is not None})
    if lingering is not None:
        await _throw_away(lingering)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _throw_away(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            more = True
            while more:
                message: Message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        return

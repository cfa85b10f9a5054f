"""A small application behind the door, on a real socket, and a client in front of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from trilithon.serve.access.keys import Keyring
from trilithon.serve.access.security import SecurityOptions, install
from trilithon.serve.http.protocol import PatientProtocol

CHAT = "/v1/chat/completions"


@dataclass
class Door:
    http: httpx.AsyncClient
    port: int
    app: Starlette

    async def raw(self, *parts: bytes, pause_seconds: float = 0.0) -> bytes:
        """Send these, and take what comes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_seconds)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


def application() -> Starlette:
    async def told(request: Request) -> Response:
        return JSONResponse({"key": request.state.key_name, "bytes": len(await request.body())})

    async def stream(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"data: {number}\n\n".encode()
                await asyncio.sleep(0.2)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def careless(request: Request) -> Response:
        """Makes nothing of what goes wrong with the body, as frameworks do."""
        with contextlib.suppress(Exception):
            await request.body()
        return PlainTextResponse("fine")

    async def broken(_: Request) -> Response:
        raise RuntimeError("a prompt stands here")

    async def endless(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # as one that waits for an engine does

        return StreamingResponse(pieces(), media_type="text/event-stream")

    routes = {
        "/": told,
        "/health": told,
        CHAT: told,
        "/v1/messages": told,
        "/api/chat": told,
        "/api/blobs/x": told,
        "/stream": stream,
    }
    routes |= {"/careless": careless, "/broken": broken, "/endless": endless}
    return Starlette(routes=[Route(path, each, methods=["GET", "POST"]) for path, each in routes.items()])


@contextlib.asynccontextmanager
async def opened(options: SecurityOptions, keys: Keyring | None = None) -> AsyncIterator[Door]:
    app = application()
    install(app, options, keys)
    listening = socket.create_server(("127.0.0.1", 0))
    config, state = uvicorn.Config(app, http=PatientProtocol, ws="none", log_config=None, lifespan="off"), ServerState()
    config.load()

    def connected() -> PatientProtocol:
        return PatientProtocol(config=config, server_state=state, app_state={})

    # Without uvicorn's own loop, which looks only ten times a second whether it is to end.
    server = await asyncio.get_running_loop().create_server(connected, sock=listening)
    port = listening.getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Door(client, port, app)
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which connections say that they are lost


def at_the_door(options: SecurityOptions, visit: Callable[[Door], Awaitable[Any]], keys: Keyring | None = None) -> Any:
    async def run() -> Any:
        async with opened(options, keys) as door:
            return await visit(door)

    return asyncio.run(run())

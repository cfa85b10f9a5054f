"""The paths of the wire, once, for the servers that are written in Python; and requests that take turns at one slot."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["Handler", "Turns", "WireServer"]

Handler = Callable[[Request], Awaitable[Response]]


class Turns:
    """What a slot is besides what it computes: first come, first served, and `waiting` counts who has to wait."""

    def __init__(self) -> None:
        self.waiting = 0
        self._busy = asyncio.Lock()

    @property
    def processing(self) -> bool:
        return self._busy.locked()

    @asynccontextmanager
    async def _taken(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._busy.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._busy.release()


class WireServer(ABC):
    """One method per path; what llama-server answers there is told in `wire` and `llama_bodies`."""

    def routes(self) -> list[Route]:
        get: dict[str, Handler] = {
            "/health": self._health,
            "/props": self._props,
            "/slots": self._slots,
            "/metrics": self._metrics,
            "/v1/models": self._models,
        }
        post: dict[str, Handler] = {
            "/completion": self._completion,
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embeddings,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/apply-template": self._apply_template,
            "/slots/{slot:int}": self._slot_action,
        }
        return [
            Route(path, self._guarded(handler), methods=[method])
            for method, table in (("GET", get), ("POST", post))
            for path, handler in table.items()
        ]

    def _guarded(self, handler: Handler) -> Handler:
        """What has to be so before any request is looked at."""
        return handler

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @abstractmethod
    async def _props(self, _: Request) -> Response: ...

    @abstractmethod
    async def _slots(self, _: Request) -> Response: ...

    @abstractmethod
    async def _metrics(self, _: Request) -> Response: ...

    @abstractmethod
    async def _models(self, _: Request) -> Response: ...

    @abstractmethod
    async def _completion(self, request: Request) -> Response: ...

    @abstractmethod
    async def _chat(self, request: Request) -> Response: ...

    @abstractmethod
    async def _embeddings(self, request: Request) -> Response: ...

    @abstractmethod
    async def _tokenize(self, request: Request) -> Response: ...

    @abstractmethod
    async def _detokenize(self, request: Request) -> Response: ...

    @abstractmethod
    async def _apply_template(self, request: Request) -> Response: ...

    @abstractmethod
    async def _slot_action(self, request: Request) -> Response: ...

"""A slot of a Python server: one KV cache, on which requests run one at a time."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import GenerationRequest, GenerationStep

__all__ = ["WireSlot"]

R = TypeVar("R", bound=GenerationRequest)


class WireSlot(ABC, Generic[R]):
    """Requests run in the order in which they came; `waiting` counts those that have not started.

    `tokens` are those with keys and values in the cache, as far as they are known; `decoded` counts the tokens of the
    latest request. `totals` may be shared by several slots."""

    def __init__(self, context: int, totals: Totals) -> None:
        self.context = context
        self.totals = totals
        self.tokens: list[int] = []
        self.decoded = 0
        self.waiting = 0
        self._lock = asyncio.Lock()

    @property
    def processing(self) -> bool:
        return self._lock.locked()

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    def _count_request(self) -> None:
        self.totals.requests += 1
        self.decoded = 0

    def _count_token(self) -> None:
        self.totals.generated += 1
        self.decoded += 1

    @abstractmethod
    def generate(self, request: R) -> AsyncGenerator[GenerationStep]:
        """Close the iterator to cancel. Raises WireError."""

    @abstractmethod
    async def save(self, path: Path) -> tuple[int, int]:
        """Write the cache to a file; gives the tokens and bytes written. Raises OSError, ValueError or WireError."""

    @abstractmethod
    async def restore(self, path: Path) -> tuple[int, int]:
        """Read a saved cache; gives the tokens and bytes read. Raises OSError, ValueError or WireError."""

    @abstractmethod
    async def erase(self) -> int:
        """Empty the cache; gives the number of tokens that were in it."""

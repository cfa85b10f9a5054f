"""One request at an engine, asked once more where the engine died before the first word of its answer: what killed it
may have been another request, and nobody has heard anything yet that binds."""

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from trilithon.errors import ChildDied
from trilithon.runtime.pool.pool import Busy, Lease
from trilithon.runtime.relay import DirectWriter, Relayed
from trilithon.serve.request_record import note_retried

__all__ = ["RetriedRequest"]


class RetriedRequest:
    """`lease` and `relayed` are of the engine that is at work now. `take` gives a lease; entering raises what that and
    `Runner.relay` do, and leaving cancels what is still under way."""

    lease: Lease
    relayed: Relayed

    def __init__(
        self, take: Callable[[], AbstractAsyncContextManager[Lease]], path: str, body: Mapping[str, Any]
    ) -> None:
        self._take, self._path, self._body = take, path, body
        self._held = contextlib.AsyncExitStack()
        self._died: ChildDied | None = None

    async def __aenter__(self) -> "RetriedRequest":
        try:
            await self._ask()
        except BaseException:
            await self._held.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._held.__aexit__(kind, error, trace)

    async def chunks(self, writer: DirectWriter | None = None) -> AsyncGenerator[bytes, None]:
        """As `Relayed.chunks`, given once the body has begun: some engines send the head of an answer at once, and may
        die during prefill."""
        try:
            await self.relayed.begun(writer)
        except ChildDied as error:
            if self.relayed.first_ns:
                raise
            await self._once_more(error)
        return self.relayed.chunks(writer)

    async def _ask(self) -> None:
        try:
            self.lease = await self._held.enter_async_context(self._take())
            self.relayed = await self._held.enter_async_context(self.lease.runner.relay(self._path, self._body))
        except ChildDied as error:
            await self._once_more(error)
        except Busy:
            if self._died is None:
                raise
            raise self._died from None  # it rests now: why is what matters

    async def _once_more(self, error: ChildDied) -> None:
        if self._died is not None:
            raise error
        self._died = error
        note_retried()
        await self._held.__aexit__(type(error), error, error.__traceback__)
        await self._ask()

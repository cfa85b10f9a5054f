"""Long work on the store, done in a thread while its progress goes to the client; whoever leaves ends it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from trilithon.errors import Interrupted
from trilithon.serve.catalog.threads import in_library_thread
from trilithon.serve.http.keep_alive import NDJSON
from trilithon.serve.http.streaming import Outgoing, Reply
from trilithon.serve.ollama.answers import STREAM, line
from trilithon.serve.validation import ignoring_header

__all__ = ["ProgressStream", "Tell", "Work", "working"]

_SUCCESS: Final = {"status": "success"}

Tell = Callable[[dict[str, Any]], None]
"""Sends one line. Raises Interrupted when nobody listens any more."""


@dataclass(frozen=True, slots=True)
class ProgressStream:
    """Who waits for the work: `tell` as above, and `require`, which raises Interrupted when they left, for what takes
    long and has nothing to tell."""

    tell: Tell
    require: Callable[[], None]


Work = Callable[[ProgressStream], None]


def working(work: Work, done: Callable[[], None], ignored: tuple[str, ...], *, stream: bool) -> Reply:
    """`work` runs in a thread, and `done` in the loop once it succeeded. What goes wrong before the first line is an
    ordinary error, with its status."""

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Outgoing]:
        async with contextlib.aclosing(_told(work, done)) as bodies:
            headers = ignoring_header(ignored)
            if not stream:
                last = [body async for body in bodies][-1]
                yield Outgoing(body=line(last), headers=headers)
                return
            first = await anext(bodies)
            yield Outgoing(body=_lines(first, bodies), content_type=NDJSON, headers=headers)

    return Reply(opening, STREAM if stream else None, ignoring_header(ignored))


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    yield line(first)
    async for body in rest:
        yield line(body)


async def _told(work: Work, done: Callable[[], None]) -> AsyncGenerator[dict[str, Any], None]:
    loop, left = asyncio.get_running_loop(), threading.Event()
    bodies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def require() -> None:
        if left.is_set():
            raise Interrupted("the client left; the download can be resumed")

    def tell(body: dict[str, Any]) -> None:
        require()
        loop.call_soon_threadsafe(bodies.put_nowait, body)

    task = in_library_thread(lambda: work(ProgressStream(tell, require)))
    task.add_done_callback(lambda _: bodies.put_nowait(None))
    try:
        while (body := await bodies.get()) is not None:
            yield body
        task.result()
        done()
        yield _SUCCESS
    finally:
        left.set()
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())

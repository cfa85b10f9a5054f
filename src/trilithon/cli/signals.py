"""SIGTERM as Ctrl-C: what runs is cancelled, children are stopped, what is finished stays."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from trilithon.errors import Interrupted

__all__ = ["stoppable"]

T = TypeVar("T")


async def stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; SIGINT, SIGTERM and SIGHUP cancel it. Raises Interrupted then."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted("stopped; what was finished is kept. Go on with: trilithon bench --resume") from None

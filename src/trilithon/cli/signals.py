"""SIGTERM as Ctrl-C: what runs is cancelled, children are stopped, what is finished stays."""

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from trilithon.errors import Interrupted

__all__ = ["run_stoppable"]

T = TypeVar("T")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop; SIGINT, SIGTERM and SIGHUP cancel it. Raises Interrupted then."""
    # One that comes while the loop is being made waits until there is something to cancel. Blocking it would not do:
    # the kernel then gives it to a thread of numpy's.
    early: list[int] = []
    before = {number: signal.signal(number, lambda number, _: early.append(number)) for number in _STOPPING}
    try:
        return asyncio.run(_stoppable(work, early))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _stoppable(work: Coroutine[Any, Any, T], early: Sequence[int]) -> T:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in _STOPPING:
        loop.add_signal_handler(number, task.cancel)
    if early:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted("stopped; what was finished is kept. Go on with: trilithon bench --resume") from None

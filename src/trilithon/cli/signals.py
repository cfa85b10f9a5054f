"""SIGTERM as Ctrl-C: what runs is cancelled, children are stopped, what is finished stays."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from trilithon.errors import Interrupted

__all__ = ["run_stoppable", "stoppable"]

T = TypeVar("T")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Numbers = Sequence[signal.Signals]


def run_stoppable(work: Coroutine[Any, Any, T], resume: str = "trilithon bench --resume") -> T:
    """Run `work` in an event loop; SIGINT, SIGTERM and SIGHUP cancel it. Raises Interrupted then, which names the
    command `resume`.

    Under nohup, which ignores SIGHUP, that stays ignored."""
    stopping = [
        signal_number
        for signal_number in _STOPPING
        if signal_number != signal.SIGHUP or signal.getsignal(signal_number) != signal.SIG_IGN
    ]
    # One that comes while the loop is being made waits until there is something to cancel. Blocking it would not do:
    # the kernel then gives it to a thread of numpy's.
    early: list[int] = []
    before = {number: signal.signal(number, lambda number, _: early.append(number)) for number in stopping}
    try:
        return asyncio.run(_stoppable(work, stopping, early, resume))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _stoppable(work: Coroutine[Any, Any, T], stopping: _Numbers, early: Sequence[int], resume: str) -> T:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in stopping:
        loop.add_signal_handler(number, task.cancel)
    if early:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted(f"stopped; what was finished is kept. Go on with: {resume}") from None


@contextlib.contextmanager
def stoppable(words: str) -> Iterator[None]:
    """For work outside an event loop: SIGTERM and SIGHUP as Ctrl-C, so that its tools end and its work folders go.
    Raises Interrupted with these words then."""

    def stop(_: int, __: object) -> None:
        raise KeyboardInterrupt

    stopping = [
        signal_number
        for signal_number in _STOPPING
        if signal_number != signal.SIGINT and signal.getsignal(signal_number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop) for number in stopping}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(words) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

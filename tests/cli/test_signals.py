import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from trilithon.cli.signals import run_stoppable
from trilithon.errors import Interrupted


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


async def hung_up() -> str:
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.05)
    return "went on"


def test_a_terminal_that_closes_stops_it() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Interrupted, match="--resume"):
        run_stoppable(hung_up())
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, handler


def test_under_nohup_it_goes_on() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_stoppable(hung_up()) == "went on"
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

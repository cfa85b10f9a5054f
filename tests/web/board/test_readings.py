"""One sampler for all who look, and none when nobody does."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.runtime.pool.pool import Pool
from trilithon.settings import load_configuration
from trilithon.web.board.readings import Watch

LOAD_FILE = "sys/kernel/debug/rknpu/load"


def samplers() -> int:
    return sum(thread.name == "sensors" for thread in threading.enumerate())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch(machine: Machine, folder: Path, *, patience_seconds: float = 30.0) -> Watch:
    pool = Pool(load_configuration(), folder)
    return Watch(pool, read_board(machine), machine, period_seconds=0.05, patience_seconds=patience_seconds)


def run(work: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: where a browser was driven before, this one's loop counts as running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ended(seen: Watch) -> None:
    await until(lambda: not seen.works)


def test_many_who_look_share_one_sampler(home: Path, rk3588: Machine, tmp_path: Path) -> None:
    async def look() -> None:
        seen = watch(rk3588, tmp_path, patience_seconds=0.4)
        before = open_files()
        for _ in range(50):
            seen.ask()
        await until(lambda: seen.latest is not None)
        assert samplers() == 1
        assert seen.latest is not None
        assert seen.latest.values[("load", "NPU core 0")] == 0.71
        assert (seen.latest.running, seen.latest.waiting) == (0, 0)
        await ended(seen)  # nobody asks any more
        assert samplers() == 0
        await until(lambda: open_files() == before)

    run(look())


def test_it_goes_on_after_a_pause_and_keeps_what_was(home: Path, rk3588: Machine, tmp_path: Path) -> None:
    async def look() -> None:
        seen = watch(rk3588, tmp_path, patience_seconds=0.3)
        seen.ask()
        await until(lambda: len(seen.moments) > 0)
        await ended(seen)
        kept = len(seen.moments)
        await until(lambda: seen.latest is None)  # old figures are not shown as those of now
        seen.ask()
        await until(lambda: len(seen.moments) > kept)
        await ended(seen)

    run(look())


def test_a_value_that_changes_is_seen(home: Path, rk3588: Machine, tmp_path: Path) -> None:
    async def look() -> None:
        seen = watch(rk3588, tmp_path)
        seen.ask()
        await until(lambda: seen.latest is not None)
        (tmp_path / "rk3588_vendor" / LOAD_FILE).write_text("NPU load:  Core0:  5%, Core1:  6%, Core2:  7%,\n")
        await until(lambda: seen.latest is not None and seen.latest.values.get(("load", "NPU core 2")) == 0.07)
        assert [moment.at_ns for moment in seen.moments] == sorted(moment.at_ns for moment in seen.moments)

    run(look())
    assert samplers() == 0


def test_the_minutes_kept_are_bounded(home: Path, rk3588: Machine, tmp_path: Path) -> None:
    async def look() -> None:
        pool = Pool(load_configuration(), tmp_path)
        seen = Watch(pool, read_board(rk3588), rk3588, period_seconds=60.0)
        assert seen._moments.maxlen == 5

    run(look())

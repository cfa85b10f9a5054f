"""The pool with real processes: where only its decisions matter, runners whose child is a program that does nothing."""

import asyncio
import contextlib
import contextvars
import itertools
import math
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_placement import scripted_placement

from trilithon.engines.base import Launch, Placement, Settings
from trilithon.engines.wire.messages import Completion
from trilithon.errors import ChildDied, EngineTimeout, ModelError, StartError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.client import Client
from trilithon.runtime.opening import open_runner
from trilithon.runtime.pool import history as pool_history
from trilithon.runtime.pool import loaded_model
from trilithon.runtime.pool.pool import Busy, Lease, Loaded, Pool
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

MIB = 1 << 20
ASK = Completion(prompt=[5, 6, 7], max_tokens=20, ignore_eos=True)
FAST = {"prefill": "100000", "decode": "2000", "noise": "0", "seed": "1"}
WHO = contextvars.ContextVar("WHO", default="nobody")


def placement(name: str = "scripted/cpu", *, mib: int = 100, slots: int = 1, **options: str) -> Placement:
    """One that needs `mib` MiB of memory: the size of a file in a format whose caches nobody knows."""
    settings = Settings(context=512, slots=slots, options=tuple(options.items()))
    return scripted_placement(name, settings, size_bytes=mib * MIB)


def scripted(**options: str) -> Placement:
    return placement(**(FAST | options))  # type: ignore[arg-type]


@pytest.fixture
def no_minimum_residency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "_MIN_RESIDENCY_SECONDS", 0.02)
    monkeypatch.setattr(loaded_model, "_RESIDENCY_PER_LOAD", 0.0)


@contextlib.asynccontextmanager
async def open_still(
    placement: Placement, folder: Path, configuration: Configuration, waiting: Callable[[str], None] | None
) -> AsyncIterator[Runner]:
    """A real runner around a real child that answers nothing. Options: `load` seconds, `fail` with these words."""
    options = dict(placement.settings.options)
    folder.mkdir(parents=True)
    await asyncio.sleep(float(options.get("load", "0")))
    if "fail" in options:
        raise StartError(options["fail"], cause=WHO.get())
    process = await Process.start(Launch(argv=("sleep", "1000"), socket=folder / "socket"), folder / "log")
    try:
        client = Client(folder / "socket", hang_seconds=configuration.hang_seconds)
        yield Runner(placement, process, client, time.monotonic_ns(), folder / "log")
    finally:
        await process.stop()


def with_pool(
    place: Path, body: Callable[[Pool], Awaitable[None]], *, hang_seconds: float = 20.0, **options: Any
) -> None:
    """Run `body` with a pool; afterwards nothing may be left of it."""
    configuration = Configuration(data=place, cache=place, start_seconds=30, hang_seconds=hang_seconds)
    options = {"budget_bytes": 1000 * MIB, "open_one": open_still, **options}

    async def whole() -> None:
        pool = Pool(configuration, place / "p", **options)
        try:
            await body(pool)
        finally:
            await pool.drain(5)
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert pool.loaded() == () and pool.waiting == 0
        assert not (place / "p").exists() or list((place / "p").iterdir()) == []
        assert pool._timer is None

    asyncio.run(whole())


def only(pool: Pool) -> Loaded:
    (one,) = pool.loaded()
    return one


def keys(pool: Pool) -> list[str]:
    return sorted(each.key for each in pool.loaded() if each.state != "leaving")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - the test looks from outside
            await asyncio.sleep(0.005)


class Holder:
    """A request that works until it is told to end."""

    def __init__(self, pool: Pool, key: str, what: Placement, caller: str = "me", **options: Any):
        self.lease: Lease | None = None
        self.done = asyncio.Event()
        self._opened = pool.lease(key, what, caller=caller, **options)
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._opened as self.lease:
            await self.done.wait()

    async def has_it(self) -> "Holder":
        await until(lambda: self.lease is not None or self.task.done())
        if self.task.done():
            self.task.result()
        return self

    async def end(self) -> None:
        self.done.set()
        await self.task


async def once(pool: Pool, key: str, what: Placement, caller: str = "me", **options: Any) -> tuple[int, Lease]:
    """The child's pid, and the lease when it is over."""
    async with pool.lease(key, what, caller=caller, **options) as lease:
        return lease.runner.process.pid, lease


# -- loading


def test_loaded_once_and_used_again(tmp_path: Path, children: list[Process]) -> None:
    async def body(pool: Pool) -> None:
        first, lease = await once(pool, "a", placement(load="0.1"))
        assert lease.load_seconds >= 0.1 > lease.waited_seconds
        second, lease = await once(pool, "a", placement(load="0.1"))
        assert first == second and lease.load_seconds == 0.0
        found = only(pool)
        assert (found.key, found.state, found.users, found.waiting, found.pid) == ("a", "ready", 0, 0, first)
        assert not found.pinned and found.crashes == 0 and found.load_seconds >= 0.1
        assert found.expires_in_seconds is not None and 250 < found.expires_in_seconds <= 300
        assert (pool.loads, pool.unloads, pool.crashes, pool.evictions) == (1, 0, 0, 0)

    with_pool(tmp_path, body)
    assert [child.returncode is not None for child in children] == [True]


def test_two_requests_for_one_unloaded_model_load_it_once(tmp_path: Path, children: list[Process]) -> None:
    async def body(pool: Pool) -> None:
        what = placement(load="0.5", slots=2)
        holders = [Holder(pool, "a", what) for _ in range(5)]
        await until(lambda: pool.waiting == 5)
        assert only(pool).state == "loading" and only(pool).pid is None
        await until(lambda: pool.waiting == 3)
        assert only(pool).users == 2 and only(pool).waiting == 3
        await holders[0].end()
        await holders[2].has_it()
        assert only(pool).users == 2 and pool.waiting == 2
        assert holders[2].lease is not None and holders[2].lease.waited_seconds > 0
        for holder in holders:
            await holder.end()

    with_pool(tmp_path, body)
    assert len(children) == 1


def test_a_runner_belongs_to_nobody_in_particular(tmp_path: Path) -> None:
    """Its task would else carry the first request's own variables (the log's request id) for ever."""

    async def body(pool: Pool) -> None:
        WHO.set("the first request")
        with pytest.raises(StartError) as caught:
            await once(pool, "a", placement(fail="no"))
        assert caught.value.cause == "nobody"

    with_pool(tmp_path, body)


def test_start_errors_reach_every_waiter(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        what = placement(load="0.05", fail="no driver")
        found = await asyncio.gather(*(once(pool, "a", what) for _ in range(4)), return_exceptions=True)
        assert [type(each) for each in found] == [StartError] * 4
        assert str(found[0]) == "no driver"
        assert pool.loaded() == () and pool.last_errors() == {"a": "no driver"} and pool.loads == 0

    with_pool(tmp_path, body)


def test_a_mistake_in_an_opener_hangs_nobody(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def mistaken() -> Runner:
        raise ZeroDivisionError

    @contextlib.asynccontextmanager
    async def wrong(*_: object) -> AsyncIterator[Runner]:
        yield await mistaken()

    async def body(pool: Pool) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        with pytest.raises(ZeroDivisionError):
            await once(pool, "a", placement())
        assert isinstance(seen[0]["exception"], ZeroDivisionError)

    with_pool(tmp_path, body, open_one=wrong)


def test_a_model_that_cannot_be_read_is_told(tmp_path: Path, tiny: Path) -> None:
    async def body(pool: Pool) -> None:
        copy = tmp_path / "copy.gguf"
        copy.write_bytes(tiny.read_bytes())
        what = replace(placement(), file=read_model_file(copy, tmp_path / "cache"))
        copy.unlink()
        with pytest.raises(ModelError):
            await once(pool, "a", what)
        with pytest.raises(ModelError):
            pool.pin("a", what)

    with_pool(tmp_path, body)


def test_cancelled_while_loading_others_get_it(tmp_path: Path, children: list[Process]) -> None:
    async def body(pool: Pool) -> None:
        first, second = Holder(pool, "a", placement(load="0.5")), Holder(pool, "a", placement(load="0.5"))
        await until(lambda: pool.waiting == 2)
        first.task.cancel()
        await second.has_it()
        await second.end()
        assert first.task.cancelled()

    with_pool(tmp_path, body)
    assert len(children) == 1


def test_a_load_that_nobody_waits_for_goes_on_and_expires(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        alone = Holder(pool, "a", placement(load="0.5"))
        await until(lambda: pool.waiting == 1)
        alone.task.cancel()
        await until(lambda: only(pool).state == "ready")
        assert only(pool).users == 0 and pool.waiting == 0
        await until(lambda: pool.loaded() == ())
        assert (pool.loads, pool.unloads) == (1, 1)

    with_pool(tmp_path, body, keep_alive_seconds=0.1)


def test_cancelled_when_it_was_its_turn_the_place_is_free(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        first = await Holder(pool, "a", placement()).has_it()
        second, third = Holder(pool, "a", placement()), Holder(pool, "a", placement())
        await asyncio.sleep(0.01)
        first.done.set()
        await until(lambda: first.task.done())  # the second has its turn by now, or just this moment
        second.task.cancel()
        await third.has_it()
        await third.end()
        assert only(pool).users == 0

    with_pool(tmp_path, body)


# -- memory


def test_the_least_recently_used_idle_one_is_evicted(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        for key in "abca":
            await once(pool, key, placement(mib=300))
        await once(pool, "d", placement(mib=300))
        assert keys(pool) == ["a", "c", "d"] and pool.evictions == 1
        await once(pool, "e", placement(mib=900))
        assert keys(pool) == ["e"] and pool.evictions == 4

    with_pool(tmp_path, body)


def test_no_more_are_evicted_than_must_be(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "small", placement(mib=100))
        await once(pool, "large", placement(mib=800))
        await once(pool, "new", placement(mib=500))
        assert keys(pool) == ["new", "small"]

    with_pool(tmp_path, body)


def test_one_with_users_is_waited_for(tmp_path: Path, no_minimum_residency: None) -> None:
    async def body(pool: Pool) -> None:
        busy = await Holder(pool, "a", placement(mib=600)).has_it()
        other = Holder(pool, "b", placement(mib=600))
        await until(lambda: pool.waiting == 1)
        again = Holder(pool, "a", placement(mib=600))
        await until(lambda: pool.waiting == 2)
        await asyncio.sleep(0.1)
        assert keys(pool) == ["a"] and other.lease is None and again.lease is None and pool.waiting == 2
        await busy.end()
        await other.has_it()
        assert keys(pool) == ["b"] and pool.evictions == 1
        await other.end()
        await again.has_it()
        await again.end()

    with_pool(tmp_path, body)


@pytest.mark.slow
def test_a_model_under_load_serves_a_while_before_another_pushes_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_model, "_MIN_RESIDENCY_SECONDS", 0.5)
    served = {"a": 0, "b": 0}

    async def body(pool: Pool) -> None:
        async def ask(key: str) -> None:
            while sum(served.values()) < 400 and pool.evictions < 4:
                async with pool.lease(key, placement(mib=600, slots=2), caller=key):
                    await asyncio.sleep(0.01)
                    served[key] += 1

        await asyncio.gather(*(ask(key) for key in "aabb"))
        assert pool.evictions >= 2 and min(served.values()) >= 5

    with_pool(tmp_path, body)


def test_a_load_that_nobody_wants_any_more_makes_room(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        unwanted = Holder(pool, "a", placement(mib=600, load="1000"))
        await asyncio.sleep(0.02)
        unwanted.task.cancel()
        await once(pool, "b", placement(mib=600))
        assert keys(pool) == ["b"]

    with_pool(tmp_path, body)


def test_small_ones_do_not_keep_a_large_one_out(tmp_path: Path, no_minimum_residency: None) -> None:
    async def body(pool: Pool) -> None:
        busy = [await Holder(pool, key, placement(mib=400)).has_it() for key in "ab"]
        large = Holder(pool, "large", placement(mib=900))
        await until(lambda: pool.waiting == 1)
        small = Holder(pool, "small", placement(mib=100))
        await asyncio.sleep(0.05)
        assert large.lease is None and small.lease is None
        for holder in busy:
            await holder.end()
        await large.has_it()
        await large.end()
        await small.has_it()
        await small.end()

    with_pool(tmp_path, body)


def test_room_that_will_be_free_soon_is_waited_for(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "idle", placement(mib=300))
        busy = await Holder(pool, "a", placement(mib=600)).has_it()
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: keys(pool) == ["idle"])
        new = Holder(pool, "new", placement(mib=400))
        await asyncio.sleep(0.05)
        await busy.end()
        await unloading
        await new.has_it()
        assert keys(pool) == ["idle", "new"] and pool.evictions == 0
        await new.end()

    with_pool(tmp_path, body)


def test_what_can_never_fit_is_refused_with_the_fix(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", placement(mib=600))
        with pytest.raises(
            StartError, match=r"b needs about 1001\.0 MiB .* the memory budget is 1000\.0 MiB"
        ) as caught:
            await once(pool, "b", placement(mib=1001))
        assert "\n" not in str(caught.value) and "smaller quantization" in caught.value.advice
        assert keys(pool) == ["a"] and pool.evictions == 0
        pool.pin("a", placement(mib=600))
        with pytest.raises(StartError, match=r"pinned models need 600\.0 MiB"):
            await once(pool, "b", placement(mib=500))
        with pytest.raises(StartError, match="b needs"):
            pool.pin("b", placement(mib=500))
        assert await pool.unload("a")
        await once(pool, "b", placement(mib=500))
        with pytest.raises(StartError):  # it is not worse for having been refused: no rest
            await once(pool, "c", placement(mib=1001))
        with pytest.raises(StartError):
            await once(pool, "c", placement(mib=1001))

    with_pool(tmp_path, body)


def test_the_number_of_loaded_models_is_bound(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        for key in "abc":
            await once(pool, key, placement())
        assert keys(pool) == ["b", "c"] and pool.evictions == 1
        pool.pin("b", placement())
        pool.pin("d", placement())
        await until(lambda: keys(pool) == ["b", "d"] and all(each.state == "ready" for each in pool.loaded()))
        with pytest.raises(StartError, match="2 models are pinned"):
            await once(pool, "e", placement())

    with_pool(tmp_path, body, max_loaded=2)


def test_the_budget_of_this_machine(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", placement(mib=1))
        await once(pool, "b", placement(mib=1))
        assert keys(pool) == ["a", "b"]
        with pytest.raises(StartError, match="c needs about"):
            await once(pool, "c", placement(mib=1 << 30))

    with_pool(tmp_path, body, budget_bytes=None)


# -- keeping


def test_keep_alive_counts_from_the_end_and_the_last_wish_counts(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", placement(), keep_alive_seconds=math.inf)
        assert only(pool).expires_in_seconds is None and pool._timer is None
        holder = await Holder(pool, "a", placement(), keep_alive_seconds=0.6).has_it()
        await asyncio.sleep(0.7)
        assert only(pool).expires_in_seconds == 0.6 and only(pool).idle_seconds == 0.0
        await holder.end()
        assert only(pool).state == "ready"
        await until(lambda: pool.loaded() == ())
        assert pool.unloads == 1 and pool.evictions == 0
        await once(pool, "a", placement(), keep_alive_seconds=0.0)
        assert keys(pool) == []
        await once(pool, "a", placement())
        assert only(pool).expires_in_seconds is not None

    with_pool(tmp_path, body)


def test_who_wishes_nothing_leaves_the_wish_before(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", placement(), keep_alive_seconds=math.inf)
        await once(pool, "a", placement())
        assert only(pool).expires_in_seconds is None
        ending = await Holder(pool, "a", placement(slots=1), keep_alive_seconds=0.0).has_it()
        assert pool._kept("a", placement()) > 0  # who comes after the end did not wish it
        await ending.end()

    with_pool(tmp_path, body)


def test_nought_lets_those_who_wait_have_it(tmp_path: Path, children: list[Process]) -> None:
    async def body(pool: Pool) -> None:
        await asyncio.gather(*(once(pool, "a", placement(), keep_alive_seconds=0) for _ in range(5)))
        await until(lambda: pool.loaded() == ())

    with_pool(tmp_path, body)
    assert len(children) == 1


def test_keep_sets_the_expiry_anew(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", placement())
        pool.keep("a", math.inf)
        assert only(pool).expires_in_seconds is None
        pool.keep("a", 1000)
        assert only(pool).expires_in_seconds is not None
        holder = await Holder(pool, "a", placement()).has_it()
        pool.keep("a", 0)
        pool.keep("unknown", 0)
        assert only(pool).state == "ready"
        await holder.end()
        assert keys(pool) == []

    with_pool(tmp_path, body)


def test_unload_waits_for_the_users_and_those_who_wait_load_it_again(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        assert not await pool.unload("a")
        busy = await Holder(pool, "a", placement()).has_it()
        unloading = asyncio.create_task(pool.unload("a"))
        assert pool.placements() == {"a": only(pool).placement}
        await until(lambda: only(pool).state == "leaving")
        assert pool.placements() == {}
        later = Holder(pool, "a", placement())
        await until(lambda: pool.waiting == 1)
        await asyncio.sleep(0.05)
        assert only(pool).state == "leaving" and not unloading.done() and later.lease is None
        await busy.end()
        assert await unloading
        await later.has_it()
        await later.end()
        assert (pool.loads, pool.unloads) == (2, 1)
        pool.pin("a", placement())
        assert only(pool).pinned and await pool.unload("a") and pool.loaded() == ()

    with_pool(tmp_path, body)


def test_unload_while_it_loads(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        wanted = Holder(pool, "a", placement(load="0.5"))
        await until(lambda: pool.waiting == 1)
        unloading = asyncio.create_task(pool.unload("a"))
        await wanted.has_it()
        await wanted.end()
        assert await unloading and pool.loads == 1
        pool.pin("b", placement(load="1000"))
        await asyncio.sleep(0.02)
        assert await pool.unload("b") and pool.loaded() == ()

    with_pool(tmp_path, body)


def test_another_placement_replaces_the_first_when_that_is_idle(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        small, large = placement(mib=600), placement("scripted/cpu:ctx=9", mib=700)
        busy = await Holder(pool, "a", small).has_it()
        larger = Holder(pool, "a", large)
        await until(lambda: pool.waiting == 1)
        smaller = Holder(pool, "a", small)
        await until(lambda: pool.waiting == 2)
        await asyncio.sleep(0.05)
        assert only(pool).placement == small and larger.lease is None and smaller.lease is None
        await busy.end()
        await larger.has_it()
        assert only(pool).placement == large
        await larger.end()
        await smaller.has_it()
        await smaller.end()
        assert (pool.loads, pool.unloads, pool.evictions) == (3, 2, 0)
        pool.pin("a", small)
        await once(pool, "a", large, keep_alive_seconds=0)
        assert only(pool).placement == large and only(pool).pinned
        pid = only(pool).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.loads == 5)
        assert only(pool).placement == large

    with_pool(tmp_path, body)


def test_pinned_ones_stay(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        pool.pin("a", placement(mib=600))
        await until(lambda: only(pool).state == "ready")
        assert only(pool).pinned and only(pool).expires_in_seconds is None
        _, lease = await once(pool, "a", placement(mib=600), keep_alive_seconds=0)
        assert lease.load_seconds == 0.0
        await once(pool, "b", placement(mib=300))
        await once(pool, "c", placement(mib=300))
        assert keys(pool) == ["a", "c"]

    with_pool(tmp_path, body, keep_alive_seconds=0.5)


def test_what_is_pinned_no_more_stays_for_a_while(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        assert not pool.unpin("a")
        pool.pin("a", placement())
        await until(lambda: only(pool).state == "ready")
        await asyncio.sleep(0.4)
        assert pool.pinned == ("a",) and only(pool).pinned
        assert pool.unpin("a") and not pool.unpin("a")
        (kept,) = pool.loaded()
        assert not kept.pinned and kept.state == "ready" and pool.pinned == ()
        assert kept.expires_in_seconds is not None and 0 < kept.expires_in_seconds <= 0.3
        await until(lambda: pool.loaded() == ())

    with_pool(tmp_path, body, keep_alive_seconds=0.3)


def test_the_budget_is_told(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        budget = pool.budget()
        assert budget is not None and budget.now == budget.total == 1000 * MIB

    with_pool(tmp_path, body)


# -- waiting


def test_callers_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    async def body(pool: Pool) -> None:
        async def ask(caller: str, number: int) -> None:
            async with pool.lease("a", placement(), caller=caller):
                order.append(f"{caller}{number}")
                await asyncio.sleep(0)

        first = await Holder(pool, "a", placement()).has_it()
        asked = [("x", 1), ("x", 2), ("x", 3), ("x", 4), ("y", 1), ("y", 2), ("z", 1)]
        tasks = []
        for each in asked:
            tasks.append(asyncio.create_task(ask(*each)))
            await asyncio.sleep(0.005)
        await first.end()
        await asyncio.gather(*tasks)
        assert order == ["x1", "y1", "z1", "x2", "y2", "x3", "x4"]

    with_pool(tmp_path, body)


def test_what_needs_no_slot_waits_for_nobody(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        early = Holder(pool, "a", placement(), needs_slot=False)  # loads it
        at_work = Holder(pool, "a", placement())
        waiting = Holder(pool, "a", placement())
        late = Holder(pool, "a", placement(), caller="other", needs_slot=False)
        for holder in (early, at_work, late):
            await holder.has_it()
        assert (waiting.lease, only(pool).users, pool.waiting) == (None, 3, 1)
        await at_work.end()
        await waiting.has_it()  # those without a slot take none
        pool.keep("a", 0.0)
        await waiting.end()
        await early.end()
        assert only(pool).state == "ready"  # and are users all the same
        await late.end()
        await until(lambda: not pool.loaded())

    with_pool(tmp_path, body)


def test_the_queue_is_bound_and_nobody_fills_it_alone(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        first = await Holder(pool, "a", placement()).has_it()
        waiting = [Holder(pool, "a", placement(), caller="greedy") for _ in range(4)]
        await until(lambda: pool.waiting == 4)
        with pytest.raises(Busy, match="4 requests are waiting") as caught:
            await once(pool, "a", placement(), caller="greedy")
        assert caught.value.retry_after_seconds == 10.0  # five of two seconds each, as long as none has ended
        modest = [Holder(pool, "a", placement(), caller="modest") for _ in range(2)]
        await until(lambda: waiting[2].task.done() and waiting[3].task.done())
        assert pool.waiting == 4
        with pytest.raises(Busy):
            await waiting[3].task
        with pytest.raises(Busy):
            await waiting[2].task
        with pytest.raises(Busy):  # two each: nobody has more than his share
            await once(pool, "a", placement(), caller="modest")
        for holder in (first, waiting[0], modest[0], waiting[1], modest[1]):
            await holder.end()

    with_pool(tmp_path, body, max_waiting=4)


def test_a_full_queue_does_not_hinder_other_models(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "b", placement())
        first = await Holder(pool, "a", placement()).has_it()
        second = Holder(pool, "a", placement())
        await until(lambda: pool.waiting == 1)
        await once(pool, "b", placement())
        with pytest.raises(Busy):
            await once(pool, "a", placement())
        await first.end()
        await second.end()

    with_pool(tmp_path, body, max_waiting=1)


def test_a_place_that_is_withheld_does_not_stretch_the_bound(tmp_path: Path, no_minimum_residency: None) -> None:
    async def body(pool: Pool) -> None:
        two = placement(mib=600, slots=2)
        busy = await Holder(pool, "a", two).has_it()
        await asyncio.sleep(0.05)  # its tenure is over
        other = Holder(pool, "b", placement(mib=600))
        await until(lambda: pool.waiting == 1)
        with pytest.raises(Busy):
            await once(pool, "a", two)
        assert pool.waiting == 1
        await busy.end()
        await (await other.has_it()).end()

    with_pool(tmp_path, body, max_waiting=1)


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        first = await Holder(pool, "a", placement()).has_it()
        with pytest.raises(Busy, match=r"no free slot within 0\.05 s") as caught:
            await once(pool, "a", placement())
        assert caught.value.retry_after_seconds == 2.0
        assert pool.waiting == 0 and only(pool).users == 1
        await first.end()

    with_pool(tmp_path, body, max_wait_seconds=0.05)


# -- runners that fail


@pytest.mark.slow
def test_a_crash_in_a_request_and_what_follows(
    tmp_path: Path, children: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_history, "backoff_seconds", lambda failures: 0.0 if failures < 2 else 1.5)

    async def body(pool: Pool) -> None:
        async def ask(tokens: int) -> int:
            async with pool.lease("a", scripted(crash_after="10"), caller="me") as lease:
                await lease.runner.complete(replace(ASK, max_tokens=tokens))
                return lease.runner.process.pid

        with pytest.raises(ChildDied, match="segmentation fault"):
            await ask(20)
        with pytest.raises(ChildDied, match="segmentation fault"):  # at once
            await ask(20)
        await until(lambda: pool.loaded() == ())
        with pytest.raises(Busy, match=r"is not started again for .* s: died: segmentation fault") as caught:
            await ask(20)
        assert 0 < caught.value.retry_after_seconds <= 1.5 and len(children) == 2
        await asyncio.sleep(1.51)
        assert await ask(5) == children[2].pid
        with pytest.raises(ChildDied):
            await ask(20)
        await until(lambda: pool.loaded() == ())
        assert await ask(5) == children[3].pid  # the good one before counts
        assert only(pool).crashes == pool.crashes == 3 and pool.last_errors() == {}

    with_pool(tmp_path, body, open_one=open_runner)


def test_killed_while_idle(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        pid, _ = await once(pool, "a", placement())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.loaded() == ())
        assert pool.crashes == 1 and pool.unloads == 0 and "SIGKILL" in pool.last_errors()["a"]
        again, _ = await once(pool, "a", placement())
        assert again != pid

    with_pool(tmp_path, body)


def test_killed_while_others_wait(tmp_path: Path) -> None:
    """Once they are only later; when it happens again, they are told when to come back."""

    async def body(pool: Pool) -> None:
        users = [await Holder(pool, "a", placement()).has_it()]
        users += [Holder(pool, "a", placement()) for _ in range(2)]
        await until(lambda: pool.waiting == 2)
        for user, follower in itertools.pairwise(users):
            assert user.lease is not None
            os.kill(user.lease.runner.process.pid, signal.SIGKILL)
            await until(lambda: only(pool).state == "leaving")
            await user.end()
            if follower is users[1]:
                await follower.has_it()
        with pytest.raises(Busy, match=r"a is not started again for (1\.0|0\.9) s"):
            await users[2].task

    with_pool(tmp_path, body)


def test_those_who_do_not_leave_a_dead_runner_hinder_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "_DEATH_NOTICE_SECONDS", 0.1)

    async def body(pool: Pool) -> None:
        stuck = await Holder(pool, "a", placement()).has_it()
        assert stuck.lease is not None
        os.kill(stuck.lease.runner.process.pid, signal.SIGKILL)
        pid, _ = await once(pool, "a", placement())
        assert pid != stuck.lease.runner.process.pid and only(pool).users == 0
        await stuck.end()
        assert only(pool).users == 0

    with_pool(tmp_path, body)


@pytest.mark.slow
def test_one_that_hangs_is_replaced(tmp_path: Path, children: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Process.stop, "__defaults__", (90.0,))
    short = replace(ASK, prompt=[5])

    async def body(pool: Pool) -> None:
        async with pool.lease("a", scripted(), caller="me") as lease:
            os.kill(lease.runner.process.pid, signal.SIGSTOP)
            with pytest.raises(EngineTimeout):
                await lease.runner.complete(short)
            os.kill(lease.runner.process.pid, signal.SIGCONT)
        assert only(pool).state == "ready"  # the request made nothing of it
        began = time.monotonic()
        with pytest.raises(EngineTimeout):
            async with pool.lease("a", scripted(), caller="me") as lease:
                os.kill(lease.runner.process.pid, signal.SIGSTOP)
                await lease.runner.complete(short)
        async with pool.lease("a", scripted(), caller="me") as lease:
            await lease.runner.complete(short)
        assert time.monotonic() - began < 60  # nobody waits for it to end by itself
        assert pool.crashes == 1 and [child.pid for child in children][1:] == [only(pool).pid]

    with_pool(tmp_path, body, open_one=open_runner, hang_seconds=2.0)


def test_start_failures_make_it_rest_and_another_placement_does_not(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        for _ in range(2):
            with pytest.raises(StartError, match="no driver"):
                await once(pool, "a", placement(fail="no driver"))
        with pytest.raises(Busy, match=r"a is not started again for (1\.0|0\.9) s: no driver"):
            await once(pool, "a", placement(fail="no driver"))
        await once(pool, "a", placement())
        assert pool.last_errors() == {}

    with_pool(tmp_path, body)


def test_a_request_that_worked_is_remembered_and_one_that_hung_is_not(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        history = pool._histories.of("a")
        with pytest.raises(EngineTimeout):
            async with pool.lease("a", placement(), caller="me"):
                raise EngineTimeout("no answer")
        await until(lambda: pool.loaded() == ())
        assert (pool.crashes, history.crashes, pool.last_errors()) == (1, 1, {"a": "no answer"})
        assert history.retry_after_seconds(10, 1) == 20.0
        began = time.monotonic()
        async with pool.lease("a", placement(), caller="me"):
            await asyncio.sleep(0.3)
        longest = time.monotonic() - began
        assert 3 <= history.retry_after_seconds(10, 1) <= 10 * longest
        assert history.last_error == ""
        await pool.unload("a")
        assert (pool.last_errors(), pool.unloads, pool.loads) == ({}, 1, 2)

    with_pool(tmp_path, body)


def test_the_waits_of_a_lease_are_told_apart(tmp_path: Path) -> None:
    load = asyncio.Event()

    @contextlib.asynccontextmanager
    async def held(*arguments: Any) -> AsyncIterator[Runner]:
        await load.wait()
        async with open_still(*arguments) as runner:
            yield runner

    async def body(pool: Pool) -> None:
        first = Holder(pool, "a", placement())
        await until(lambda: pool.waiting == 1)
        await asyncio.sleep(0.1)
        second = Holder(pool, "a", placement())
        await until(lambda: pool.waiting == 2)
        await asyncio.sleep(0.05)
        load.set()
        await first.has_it()
        await asyncio.sleep(0.1)
        await first.end()
        await second.has_it()
        assert first.lease is not None and second.lease is not None
        assert first.lease.load_seconds - second.lease.load_seconds >= 0.09  # it came later
        assert second.lease.load_seconds >= 0.05 and second.lease.waited_seconds >= 0.1
        await second.end()
        _, alone = await once(pool, "a", placement())
        assert alone.load_seconds == 0.0

    with_pool(tmp_path, body, open_one=held)


def test_a_real_start_failure(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        what = scripted(refuse_start="no such device")
        found = await asyncio.gather(*(once(pool, "a", what) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [StartError] * 3 and "exit code 3" in str(found[2])

    with_pool(tmp_path, body, open_one=open_runner)


def test_pinned_ones_are_started_again_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_history, "backoff_seconds", lambda failures: 0.0 if failures < 2 else 0.5)

    async def body(pool: Pool) -> None:
        pids: list[int] = []

        async def another() -> float:
            began = time.monotonic()
            await until(lambda: bool(pool.loaded()) and only(pool).pid not in (None, *pids))
            pid = only(pool).pid
            assert pid is not None
            pids.append(pid)
            return time.monotonic() - began

        pool.pin("a", placement())
        await another()
        os.kill(pids[-1], signal.SIGKILL)
        await another()
        os.kill(pids[-1], signal.SIGKILL)
        assert await another() >= 0.4  # the second in a row
        await once(pool, "a", placement())
        assert only(pool).crashes == 2

    with_pool(tmp_path, body)


def test_a_pinned_one_that_does_not_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_history, "backoff_seconds", lambda failures: 0.1 * failures)

    async def body(pool: Pool) -> None:
        starts = tmp_path / "starts"
        pool.pin("a", scripted(refuse_start="no driver", flaky="2", flaky_file=str(starts)))
        await until(lambda: "a" in pool.last_errors())
        assert "exit code 3" in pool.last_errors()["a"]
        await until(lambda: bool(pool.loaded()) and only(pool).state == "ready")
        assert starts.stat().st_size == 3 and pool.last_errors() == {} and pool.crashes == 0

    with_pool(tmp_path, body, open_one=open_runner)


# -- the end


def test_drain_lets_those_at_work_finish(tmp_path: Path, children: list[Process]) -> None:
    async def body(pool: Pool) -> None:
        pool.pin("pinned", placement())
        working = await Holder(pool, "a", placement()).has_it()
        waiting, loading = Holder(pool, "a", placement()), Holder(pool, "b", placement(load="1000"))
        await until(lambda: pool.waiting == 2)
        draining = asyncio.create_task(pool.drain(20))
        for holder in (waiting, loading):
            with pytest.raises(Busy, match="stopping"):
                await holder.task
        with pytest.raises(Busy, match="stopping"):
            await once(pool, "a", placement())
        with pytest.raises(Busy, match="stopping") as caught:
            pool.pin("c", placement())
        assert caught.value.retry_after_seconds == 5.0
        await until(lambda: [each.key for each in pool.loaded()] == ["a"])
        assert not draining.done()
        await working.end()
        await draining

    with_pool(tmp_path, body)
    assert all(child.returncode is not None for child in children)


@pytest.mark.parametrize("cancelled", [False, True])
def test_drain_has_a_limit(tmp_path: Path, children: list[Process], cancelled: bool) -> None:
    async def body(pool: Pool) -> None:
        working = await Holder(pool, "a", placement()).has_it()
        draining = asyncio.create_task(pool.drain(1000 if cancelled else 0.05))
        await asyncio.sleep(0.02)
        if cancelled:
            draining.cancel()
        await asyncio.wait([draining])
        assert draining.cancelled() == cancelled and pool.loaded() == ()
        assert all(child.returncode is not None for child in children)
        await working.end()

    with_pool(tmp_path, body)


def test_a_loop_that_ends_leaves_no_child(tmp_path: Path, children: list[Process]) -> None:
    async def forgetful() -> None:
        pool = Pool(Configuration(data=tmp_path, cache=tmp_path), tmp_path / "p", open_one=open_still)
        await once(pool, "a", placement())
        pool.pin("b", placement(load="1000"))
        await asyncio.sleep(0.01)

    asyncio.run(forgetful())
    assert [child.returncode is not None for child in children] == [True]


# -- with real engines


def test_measured_memory_is_shown(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        await once(pool, "a", scripted(memory=str(200 * MIB)))
        assert 200 * MIB < only(pool).size_bytes < 400 * MIB

    with_pool(tmp_path, body, open_one=open_runner)


def test_a_handover_has_two_processes_and_its_decoders_slots(tmp_path: Path, children: list[Process]) -> None:
    half = scripted(memory=str(100 * MIB), prefill="50000")
    pair = replace(half, name="scripted/npu+scripted/cpu", prefill=replace(half, name="scripted/npu", unit="npu"))

    async def body(pool: Pool) -> None:
        pid, _ = await once(pool, "a", pair)
        assert only(pool).size_bytes > 200 * MIB and len(children) == 2
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.loaded() == ())
        assert all(child.returncode is not None for child in children)
        async with pool.lease("a", pair, caller="me") as lease:
            await lease.runner.complete(ASK)

    with_pool(tmp_path, body, open_one=open_runner, budget_bytes=8000 * MIB)


# -- everything at once


class Storm:
    """120 requests of five callers for seven models, of which four fit at best, while children are killed, requests
    are cancelled and models unloaded."""

    def __init__(self, pool: Pool, seed: int):
        self.pool = pool
        self.chance = random.Random(seed)
        self.outcomes: list[str] = []
        self.models = {key: self._model(load) for key, load in zip("abcde", (0, 0, 0.01, 0.03, 0.05), strict=True)}
        self.models["bad"] = placement(fail="always")
        self.models["huge"] = placement(mib=1001)

    def _model(self, load: float) -> Placement:
        mib, slots = self.chance.choice((100, 300, 600, 900)), self.chance.choice((1, 2, 3))
        return placement(mib=mib, slots=slots, load=f"{load:.3f}")

    def check(self) -> None:
        now = self.pool.loaded()
        assert sum(each.placement.file.size_bytes for each in now) <= 1000 * MIB and len(now) <= 4
        assert all(0 <= each.users <= each.placement.settings.slots for each in now)
        assert len({each.key for each in now}) == len(now) and 0 <= self.pool.waiting <= 40

    async def ask(self, number: int) -> None:
        key = self.chance.choice(list(self.models))
        what = self.models[key]
        if self.chance.random() < 0.1:
            what = replace(what, name="another")
        keep_alive = self.chance.choice((None, 0.0, 0.02, math.inf))
        work = self.chance.uniform(0, 0.02)
        await asyncio.sleep(self.chance.uniform(0, 0.5))
        try:
            async with self.pool.lease(key, what, caller=str(number % 5), keep_alive_seconds=keep_alive) as lease:
                self.check()
                assert lease.runner.placement == what
                await asyncio.sleep(work)
            self.outcomes.append("served")
        except (Busy, StartError) as error:
            self.outcomes.append(type(error).__name__)
        self.check()

    def disturb(self, tasks: list[asyncio.Task[None]]) -> None:
        self.check()
        ready = [each for each in self.pool.loaded() if each.state == "ready"]
        what = self.chance.randrange(6)
        if what == 0:
            self.chance.choice(tasks).cancel()
        elif what == 1 and ready:
            self.pool.keep(self.chance.choice(ready).key, self.chance.choice((0.0, 1.0)))
        elif what == 2 and ready and (pid := self.chance.choice(ready).pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def rage(self) -> None:
        tasks = [asyncio.create_task(self.ask(number)) for number in range(120)]
        unloading = asyncio.create_task(self.pool.unload("a"))
        async with asyncio.timeout(60):
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.02)
                self.disturb(tasks)
            await asyncio.wait([*tasks, unloading])
        served = [task.result() for task in tasks if not task.cancelled()]
        assert len(served) == len(self.outcomes) and self.outcomes.count("served") >= 20
        assert self.pool.waiting == 0 and all(each.users == 0 for each in self.pool.loaded())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_everybody_is_served_or_refused(
    tmp_path: Path, children: list[Process], no_minimum_residency: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(pool_history, "backoff_seconds", lambda failures: 0.0 if failures < 2 else 0.05)

    async def body(pool: Pool) -> None:
        await Storm(pool, seed).rage()

    with_pool(tmp_path, body, max_waiting=40, max_loaded=4, keep_alive_seconds=0.1)
    assert all(child.returncode is not None for child in children)

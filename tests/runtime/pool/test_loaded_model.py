"""One loaded model: its figures, its place for requests, its end. Its child is a program that does nothing."""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_placement import scripted_placement

from trilithon.engines.base import Launch, Placement, Settings
from trilithon.runtime.client import Client
from trilithon.runtime.pool import loaded_model
from trilithon.runtime.pool.budget import process_memory
from trilithon.runtime.pool.loaded_model import LoadedModel
from trilithon.runtime.pool.planning import Demand, ModelSnapshot, State
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner

NEED = 10**9
CPU = scripted_placement(settings=Settings(slots=2))
NPU = replace(CPU, name="scripted/npu", unit="npu")


@contextlib.asynccontextmanager
async def opening(
    placement: Placement, folder: Path, begin: asyncio.Event, argv: tuple[str, ...] = ("sleep", "1000")
) -> AsyncIterator[Runner]:
    folder.mkdir()
    await begin.wait()
    process = await Process.start(Launch(argv=argv, socket=folder / "socket"), folder / "log")
    try:
        await until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == f"{argv[0]}\n")
        yield Runner(placement, process, Client(folder / "socket", hang_seconds=20), 0, folder / "log")
    finally:
        await process.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - the test looks from outside
            await asyncio.sleep(0.005)


class Loading:
    """A model that loads until `finish` is awaited."""

    def __init__(self, folder: Path, placement: Placement = CPU, argv: tuple[str, ...] = ("sleep", "1000")):
        self.loaded: list[State] = []
        self._begin = asyncio.Event()
        demand = Demand("key", placement, NEED, 300.0, 0.0)
        self.model = LoadedModel(demand, folder, opening(placement, folder, self._begin, argv), self._note)

    def _note(self) -> None:
        self.loaded.append(self.model.state)

    async def finish(self) -> LoadedModel:
        self._begin.set()
        await until(lambda: self.model.runner is not None)
        return self.model


def run(folder: Path, body: Callable[[Loading], Awaitable[None]], placement: Placement = CPU) -> None:
    async def whole() -> None:
        loading = Loading(folder, placement)
        try:
            await body(loading)
        finally:
            loading.model.task.cancel()
            await asyncio.wait([loading.model.task])
        assert loading.model.state == "leaving"
        assert not folder.exists()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


def test_while_it_loads(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        model = loading.model
        await until((tmp_path / "r").exists)
        model.began = time.monotonic() - 100
        assert 100 <= model.load_seconds < 160
        assert (model.size_bytes, model.held_bytes) == (NEED, None)
        assert not model.has_place_for(CPU)
        state = model.describe(pinned=False, waiting=3, crashes=2)
        assert (state.key, state.placement, state.state, state.users) == ("key", CPU, "loading", 0)
        assert (state.waiting, state.crashes, state.pid, state.pinned, state.handover) == (3, 2, None, False, None)
        assert (state.size_bytes, state.idle_seconds, state.expires_in_seconds) == (NEED, 0.0, 300.0)
        assert 100 <= state.load_seconds < 160
        assert loading.loaded == []

    run(tmp_path / "r", body)


def test_when_it_is_loaded(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        before = time.monotonic()
        model = await loading.finish()
        assert loading.loaded == ["ready"]
        assert (model.users, model.unload_requested, model.crashed) == (0, False, "")
        assert before <= model.ready_at == model.last_used == model.kept_from <= time.monotonic()
        model.began = model.ready_at - 3
        assert model.load_seconds == pytest.approx(3)
        assert model.residency_ends == pytest.approx(model.ready_at + 6)
        model.began = model.ready_at - 0.25
        assert model.residency_ends == pytest.approx(model.ready_at + 1)
        assert model.runner is not None
        os.kill(model.runner.process.pid, signal.SIGSTOP)  # else its memory may change between two looks
        memory = process_memory(model.runner.process.pid)
        assert memory is not None
        assert model.size_bytes == memory.anonymous_bytes + memory.mapped_bytes
        assert model.held_bytes == memory.anonymous_bytes
        model.last_used = model.kept_from = time.monotonic() - 100
        state = model.describe(pinned=False, waiting=0, crashes=0)
        assert (state.state, state.pid, state.pinned) == ("ready", model.runner.process.pid, False)
        assert state.size_bytes == model.size_bytes
        os.kill(model.runner.process.pid, signal.SIGCONT)
        assert 100 <= state.idle_seconds < 160
        assert state.expires_in_seconds is not None
        assert 140 < state.expires_in_seconds <= 200
        assert model.describe(pinned=True, waiting=0, crashes=0).expires_in_seconds is None
        model.kept_from -= 1000
        assert model.describe(pinned=False, waiting=0, crashes=0).expires_in_seconds == 0.0
        model.keep_alive_seconds = math.inf
        assert model.describe(pinned=False, waiting=0, crashes=0).expires_in_seconds is None

    run(tmp_path / "r", body)


def test_while_it_is_in_use(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        model.last_used = model.kept_from = 5.0
        model.take(50.0)
        state = model.describe(pinned=False, waiting=0, crashes=0)
        assert (state.users, state.idle_seconds, state.expires_in_seconds) == (1, 0.0, 50.0)
        assert model.expires_at == math.inf
        model.take(20.0)
        model.release()
        assert (model.users, model.keep_alive_seconds, model.expires_at) == (1, 20.0, math.inf)
        released = time.monotonic()
        model.release()
        assert model.last_used == model.kept_from >= released
        assert model.expires_at == model.kept_from + 20
        assert model.state == "ready"

    run(tmp_path / "r", body)


@pytest.mark.parametrize(
    "placement", [NPU, replace(NPU, prefill=CPU), replace(CPU, prefill=NPU)], ids=["npu", "decode", "prefill"]
)
def test_device_memory_shows_in_no_process(tmp_path: Path, placement: Placement) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        assert (model.size_bytes, model.held_bytes) == (NEED, NEED)
        model.need_bytes = 7
        assert model.size_bytes > 7
        assert model.held_bytes == 7

    run(tmp_path / "r", body, placement)


def test_two_placements_on_the_cpu_have_no_device_memory(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        assert model.size_bytes < NEED
        assert model.held_bytes is not None
        assert model.held_bytes < NEED

    run(tmp_path / "r", body, replace(CPU, prefill=CPU))


def test_place_for_as_many_requests_as_it_has_slots(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        other = replace(CPU, name="other")
        places = []
        for _ in range(3):
            places.append((model.has_place_for(CPU), model.has_place_for(other)))
            model.take(1.0)
        assert places == [(True, False), (True, False), (False, False)]
        for _ in range(3):
            model.release()
        assert model.has_place_for(CPU)
        model.leave("a test")
        assert not model.has_place_for(CPU)

    run(tmp_path / "r", body)


@pytest.mark.parametrize(
    ("state", "requested", "needed", "at"),
    [
        ("ready", False, False, 307.0),
        ("ready", False, True, math.inf),
        ("ready", True, False, -math.inf),
        ("ready", True, True, -math.inf),
        ("loading", False, False, math.inf),
        ("loading", False, True, math.inf),
        ("loading", True, False, -math.inf),
        ("loading", True, True, math.inf),
        ("leaving", False, False, math.inf),
        ("leaving", True, True, math.inf),
    ],
)
def test_when_it_is_unloaded(tmp_path: Path, state: State, requested: bool, needed: bool, at: float) -> None:
    async def body(loading: Loading) -> None:
        model = loading.model
        await until((tmp_path / "r").exists)
        model.state, model.unload_requested, model.kept_from = state, requested, 7.0
        assert model.unload_at(needed=needed) == at

    run(tmp_path / "r", body)


@pytest.mark.parametrize("users", [0, 1])
def test_the_snapshot_for_decisions(tmp_path: Path, users: int) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        model.began, model.ready_at, model.last_used, model.users = 10.0, 14.0, 30.0, users
        assert model.snapshot(pinned=True, requested=False) == ModelSnapshot(
            key="key",
            need_bytes=NEED,
            state="ready",
            in_use=users > 0,
            requested=False,
            pinned=True,
            last_used=30.0,
            residency_ends=22.0,
        )
        assert model.snapshot(pinned=False, requested=True).requested
        assert not model.snapshot(pinned=False, requested=True).pinned

    run(tmp_path / "r", body)


def test_a_load_is_given_up(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        await until((tmp_path / "r").exists)
        loading.model.leave("a test")
        assert loading.model.state == "leaving"
        await asyncio.wait([loading.model.task])
        assert loading.model.task.cancelled()
        assert loading.loaded == []

    run(tmp_path / "r", body)


def test_it_leaves_after_its_last_user(tmp_path: Path, children: list[Process]) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        model.take(1.0)
        model.take(1.0)
        model.leave("a test")
        model.release()
        await asyncio.sleep(0.05)
        assert not model.task.done()
        assert children[0].returncode is None
        model.release()
        await asyncio.wait_for(model.task, 30)
        assert model.crashed == ""
        assert children[0].returncode is not None

    run(tmp_path / "r", body)


def test_the_log_of_a_dead_child_is_kept_for_its_users(tmp_path: Path) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        assert model.runner is not None
        model.take(1.0)
        os.kill(model.runner.process.pid, signal.SIGKILL)
        await until(lambda: model.state == "leaving")
        assert model.crashed == f"died: {model.runner.process.diagnose().cause}"
        await asyncio.sleep(0.05)
        assert (tmp_path / "r" / "log").exists()
        assert not model.has_place_for(CPU)
        model.release()
        await asyncio.wait_for(model.task, 30)

    run(tmp_path / "r", body)


def test_the_log_of_a_dead_child_without_users_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "_DEATH_NOTICE_SECONDS", 1000.0)

    async def body(loading: Loading) -> None:
        model = await loading.finish()
        assert model.runner is not None
        os.kill(model.runner.process.pid, signal.SIGKILL)
        await asyncio.wait_for(model.task, 60)
        assert model.crashed.startswith("died: ")

    run(tmp_path / "r", body)


def test_users_that_do_not_notice_a_death_are_not_awaited_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_model, "_DEATH_NOTICE_SECONDS", 0.05)

    async def body(loading: Loading) -> None:
        model = await loading.finish()
        assert model.runner is not None
        model.take(1.0)
        os.kill(model.runner.process.pid, signal.SIGKILL)
        await asyncio.wait_for(model.task, 30)
        assert model.users == 1

    run(tmp_path / "r", body)


def test_a_child_that_hangs_is_ended_once_it_has_no_users(tmp_path: Path, children: list[Process]) -> None:
    async def body(loading: Loading) -> None:
        model = await loading.finish()
        model.take(1.0)
        model.spoil("no answer")
        model.spoil("still no answer")
        assert (model.state, model.crashed) == ("leaving", "no answer")
        await asyncio.sleep(0.05)
        assert children[0].returncode is None
        model.release()
        await asyncio.wait_for(model.task, 30)
        assert children[0].returncode is not None
        assert model.crashed == "no answer"

    run(tmp_path / "r", body)


SPINS = ("sh", "-c", "while :; do :; done")


@pytest.mark.parametrize("argv", [SPINS, ("sleep", "1000")])
@pytest.mark.parametrize("in_use", [False, True])
def test_an_engine_that_computes_without_a_request_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], in_use: bool
) -> None:
    monkeypatch.setattr(loaded_model, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(loaded_model, "_BUSY", 0.02)  # of a machine that others use too

    async def whole() -> None:
        loading = Loading(tmp_path / "m", argv=argv)
        model = await loading.finish()
        if in_use:
            model.take(300.0)
        ended, _ = await asyncio.wait([model.task], timeout=60 if argv == SPINS and not in_use else 2)
        assert bool(ended) == (argv == SPINS and not in_use)
        assert model.crashed == ("it computed without a request" if ended else "")
        model.task.cancel()
        await asyncio.wait([model.task])

    asyncio.run(whole())

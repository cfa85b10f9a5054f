"""The pulls of a server: started in the background or for a client, watched, stopped, and kept for a while."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_web import Fault, WebStandIn

from trilithon.board.snapshot import read_board
from trilithon.errors import DownloadError, Interrupted, ModelError
from trilithon.models.names import Repository
from trilithon.models.store.model_store import ModelStore
from trilithon.serve.catalog import threads as library_threads
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.catalog.pulls import Pulls, PullState, local_name, pullable
from trilithon.serve.http.errors import ApiError
from trilithon.settings import Configuration

NAME = "hf.co/ann/M:Q8_0"
CONTENT = b"GGUF" + bytes(range(256)) * 800


@pytest.fixture
def pulls(configuration: Configuration) -> Pulls:
    return Pulls(Catalog(configuration, read_board()))


@pytest.fixture
def storage() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


@pytest.fixture
def hub(home: Path, storage: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories["ann/M"] = HubRepository({"m-Q8_0.gguf": CONTENT})
        yield server


def slowly(storage: WebStandIn) -> None:
    storage.fault = lambda asked: None if asked.is_look else Fault(pace=len(CONTENT) / 60)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - the test looks from outside
            await asyncio.sleep(0.01)


def only(pulls: Pulls) -> PullState:
    (state,) = pulls.states()
    return state


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await body()

    asyncio.run(whole())


def test_a_pull_in_the_background_ends_in_the_store(
    pulls: Pulls, hub: HubStandIn, configuration: Configuration
) -> None:
    done: list[str] = []

    async def body() -> None:
        number = pulls.start(NAME, done.append)
        assert only(pulls).outcome == "running"
        await until(lambda: bool(done))
        assert only(pulls).number == number

    run(body)
    state = only(pulls)
    assert (state.outcome, state.name, state.local_name, done) == ("done", NAME, NAME, [NAME])
    assert state.step.stage == "keeping"
    with ModelStore.open(configuration) as store:
        assert store.has(hashlib.sha256(CONTENT).hexdigest())
    pulls.forget(state.number)
    assert pulls.states() == ()


def test_what_is_fetched_already_is_not_fetched_twice_and_goes_on_where_it_was_stopped(
    pulls: Pulls, hub: HubStandIn, storage: WebStandIn
) -> None:
    slowly(storage)

    async def body() -> None:
        first = pulls.start(NAME, lambda _: None)
        assert pulls.start(NAME, lambda _: None) == first
        await until(lambda: (only(pulls).step.progress is not None) and storage.sent_bytes > 0)
        pulls.stop(first)
        assert only(pulls).stopping
        await until(lambda: only(pulls).outcome == "stopped")
        came = storage.sent_bytes
        storage.fault = lambda _: None
        second = pulls.start(NAME, lambda _: None)
        assert second != first
        await until(lambda: pulls.states()[0].outcome == "done")
        assert [state.number for state in pulls.states()] == [second, first]
        assert storage.sent_bytes < came + len(CONTENT)

    run(body)


def test_why_it_failed_is_kept_in_one_line(pulls: Pulls, hub: HubStandIn) -> None:
    async def body() -> None:
        pulls.start("hf.co/ann/Nothing", lambda _: pytest.fail("there is none"))
        await until(lambda: only(pulls).outcome == "failed")

    run(body)
    assert "ann/Nothing" in only(pulls).problem
    assert "\n" not in only(pulls).problem


def test_a_clients_own_pull_is_one_of_them(pulls: Pulls, hub: HubStandIn) -> None:
    told = []
    pulled = pulls.run(Repository("ann", "M", "Q8_0"), told.append, insecure=False)
    assert str(pulled.manifest.name) == NAME
    assert told[0].stage == "looking"
    assert only(pulls).outcome == "done"
    with pytest.raises((ModelError, DownloadError)):
        pulls.run(Repository("ann", "Nothing"), told.append, insecure=False)
    assert [state.outcome for state in pulls.states()] == ["failed", "done"]


def test_a_server_that_ends_stops_them_and_begins_no_more(pulls: Pulls, hub: HubStandIn, storage: WebStandIn) -> None:
    slowly(storage)

    async def body() -> None:
        pulls.start(NAME, lambda _: None)
        await until(lambda: storage.sent_bytes > 0)
        pulls.close()
        await until(lambda: only(pulls).outcome == "stopped")

    run(body)
    with pytest.raises(Interrupted):
        pulls.run(Repository("ann", "M", "Q8_0"), lambda _: None, insecure=False)


def test_of_those_that_ended_the_last_are_kept(pulls: Pulls, hub: HubStandIn) -> None:
    for _ in range(25):
        pulls.run(Repository("ann", "M", "Q8_0"), lambda _: None, insecure=False)
    assert len(pulls.states()) == 21
    assert pulls.states()[0].number == 25


def test_more_than_there_are_threads_for_are_refused_and_leave_no_trace(pulls: Pulls, hub: HubStandIn) -> None:
    async def body() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(60)

        busy = [library_threads.in_library_thread(wait) for _ in range(library_threads.MOST_AT_ONCE)]
        with pytest.raises(ApiError, match="wait until one is finished"):
            pulls.start(NAME, lambda _: None)
        assert pulls.states() == ()
        gate.set()
        await asyncio.gather(*busy)

    run(body)


@pytest.mark.parametrize("name", ["", "a b", "https://example.com/m.gguf", "./m.gguf", "/etc/passwd", "../x"])
def test_only_names_are_pulled(pulls: Pulls, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        pulls.start(name, lambda _: None)
    assert caught.value.status == 400
    assert pulls.states() == ()


def test_the_name_that_it_will_have() -> None:
    assert local_name(pullable("hf.co/a.b/M:latest")) == "hf.co/a-b/M:latest"
    assert str(pullable("hf.co/a.b/M:latest")) == "hf.co/a.b/M"
    assert local_name(pullable("qwen2.5:0.5b")) == "qwen2.5:0.5b"

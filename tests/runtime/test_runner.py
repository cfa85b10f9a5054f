import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from process_table import is_gone
from scripted_placement import scripted_placement

from trilithon.engines.base import Launch, Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.wire.messages import Chat, Completion, Finished, Token
from trilithon.errors import ChildDied, EngineError, EngineTimeout, RunError, StartError
from trilithon.runtime import process as process_module
from trilithon.runtime.client import Client
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner, _until_ready

FAST = {"prefill": "100000", "decode": "2000", "noise": "0", "seed": "1"}
ASK = Completion(prompt=[5, 6, 7], max_tokens=20, ignore_eos=True)


def placement(name: str = "scripted/cpu", **options: str) -> Placement:
    settings = Settings(context=512, options=tuple((FAST | options).items()))
    return scripted_placement(name, settings)


class Command(ScriptedEngine):
    """An engine whose child is any program; `{socket}` in its words is the socket's path."""

    def __init__(self, *argv: str):
        super().__init__()
        self._argv = argv

    def launch(self, placement: Placement, folder: Path) -> Launch:
        socket = folder / "wire.sock"
        return Launch(argv=tuple(word.replace("{socket}", str(socket)) for word in self._argv), socket=socket)


@contextlib.asynccontextmanager
async def opened(
    folder: Path, *, hang_seconds: float = 20.0, start_seconds: float = 60.0, name: str = "p", **options: str
) -> AsyncIterator[Runner]:
    async with Runner.open(
        ScriptedEngine(), placement(name, **options), folder, start_seconds=start_seconds, hang_seconds=hang_seconds
    ) as runner:
        yield runner


def run(folder: Path, body: Callable[[Runner], Awaitable[None]], *, hang_seconds: float = 20.0, **options: str) -> None:
    async def whole() -> None:
        async with opened(folder, hang_seconds=hang_seconds, **options) as runner:
            await body(runner)

    asyncio.run(whole())


def not_started(
    folder: Path, engine: ScriptedEngine, *, start_seconds: float = 60.0, hang_seconds: float = 20.0, **options: str
) -> StartError:
    async def whole() -> None:
        async with Runner.open(
            engine, placement(**options), folder, start_seconds=start_seconds, hang_seconds=hang_seconds
        ):
            raise AssertionError("it started")

    with pytest.raises(StartError) as caught:
        asyncio.run(whole())
    assert "\n" not in str(caught.value)
    return caught.value


# -- when all is well


def test_ready_and_every_kind_of_request(tmp_path: Path, children: list[Process]) -> None:
    async def body(runner: Runner) -> None:
        assert runner.started_ns < runner.ready_ns <= time.monotonic_ns()
        assert not is_gone(children[0].pid)
        events, finished = await runner.complete(ASK)
        assert isinstance(finished, Finished)
        assert finished.reason == "length"
        assert finished.timings is not None
        assert (finished.timings.prompt_n, finished.timings.predicted_n) == (3, 20)
        assert all(isinstance(event, Token) for event in events)
        streamed = [event async for event in runner.stream(ASK)]
        assert isinstance(streamed[-1], Finished)
        assert [e.text for e in streamed[:-1] if isinstance(e, Token)] == [
            e.text for e in events if isinstance(e, Token)
        ]
        top, timings = await runner.distribution(Completion(prompt=[5], max_tokens=1, candidates=8))
        assert len(top) == 8
        assert timings.prompt_n == 1
        tokens = await runner.tokenize("two stones", add_special=False)
        assert tokens
        assert max(tokens) < await runner.vocabulary_size()

    run(tmp_path / "new" / "folder", body)
    assert is_gone(children[0].pid)
    assert (tmp_path / "new" / "folder" / "log").exists()


def test_a_load_takes_its_time(tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        assert runner.ready_ns - runner.started_ns >= 200_000_000

    run(tmp_path, body, load="0.2")


def test_a_folder_can_be_used_again(tmp_path: Path, children: list[Process]) -> None:
    async def body(runner: Runner) -> None:
        await runner.complete(ASK)

    for _ in range(2):
        run(tmp_path, body)
    assert [is_gone(child.pid) for child in children] == [True, True]


def test_two_runners_side_by_side(tmp_path: Path, children: list[Process]) -> None:
    async def whole() -> None:
        async with (
            opened(tmp_path / "a", text="one") as one,
            opened(tmp_path / "b", text="two", crash_after="5") as two,
        ):
            first, second = await asyncio.gather(one.complete(ASK), two.complete(ASK), return_exceptions=True)
            assert isinstance(second, ChildDied)
            assert not isinstance(first, BaseException)
            assert "one" in "".join(event.text for event in first[0] if isinstance(event, Token))
            assert await one.tokenize("still here")

    asyncio.run(whole())
    assert all(is_gone(child.pid) for child in children)


def test_an_error_in_the_body_leaves_no_child(tmp_path: Path, children: list[Process]) -> None:
    async def body(runner: Runner) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        run(tmp_path, body)
    assert is_gone(children[0].pid)


@pytest.mark.parametrize("options", [{}, {"hang_start": "yes"}])
def test_cancelling_leaves_no_child(tmp_path: Path, children: list[Process], options: dict[str, str]) -> None:
    async def whole() -> None:
        async def endless() -> None:
            async with opened(tmp_path, **options):
                await asyncio.sleep(30)

        task = asyncio.create_task(endless())
        while not (tmp_path / "wire.sock").exists():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_gone(children[0].pid)

    asyncio.run(whole())


def test_closing_a_stream_frees_the_engine(tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        stream = runner.stream(Chat(messages=[("user", "hi")], max_tokens=100_000))
        assert isinstance(await anext(stream), Token)
        await stream.aclose()
        async with asyncio.timeout(30):  # the one slot is free again
            await runner.complete(ASK)

    run(tmp_path, body, decode="50", text="word " * 4000)


# -- when it does not start


def test_a_child_that_refuses_to_start(tmp_path: Path, children: list[Process]) -> None:
    error = not_started(tmp_path, ScriptedEngine(), refuse_start="the weights are wet")
    assert error.cause == "exit code 3"
    assert str(error) == "scripted/cpu did not start: exit code 3"
    assert "the weights are wet" in " ".join(error.last_words)
    assert is_gone(children[0].pid)


def test_a_program_that_is_not_there(tmp_path: Path, children: list[Process]) -> None:
    error = not_started(tmp_path, Command("/no/such/llama-server"))
    assert error.cause
    assert "/no/such/llama-server" in " ".join(error.last_words)
    assert is_gone(children[0].pid)


def test_a_crash_before_it_is_ready(tmp_path: Path, children: list[Process]) -> None:
    error = not_started(tmp_path, Command("sh", "-c", "echo loading >&2; kill -SEGV $$"))
    assert "SIGSEGV" in error.cause
    assert error.last_words == ("loading",)
    assert is_gone(children[0].pid)


def test_running_out_of_memory_while_it_loads_is_told_from_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4])  # what the kernel's counter says at the start and after the end
    monkeypatch.setattr(process_module, "oom_kills", lambda: next(counts))
    error = not_started(tmp_path, Command("sh", "-c", "kill -KILL $$"))
    assert error.cause == "killed by the kernel: out of memory"
    assert error.advice


def test_a_load_that_takes_too_long(tmp_path: Path, children: list[Process]) -> None:
    began = time.monotonic()
    error = not_started(tmp_path, ScriptedEngine(), start_seconds=0.7, hang_start="yes")
    assert error.cause == "not ready in time"
    assert "not ready after 0.7 s" in str(error)
    assert "TRILITHON_START_SECONDS" in error.advice
    assert 0.7 <= time.monotonic() - began < 60
    assert is_gone(children[0].pid)


def test_a_load_that_somebody_stops_is_not_waited_for(tmp_path: Path, children: list[Process]) -> None:
    error = not_started(tmp_path, Command("sh", "-c", "kill -STOP $$"), hang_seconds=0.3)
    assert error.cause == "stopped by a signal"
    assert is_gone(children[0].pid)


DEAF = """
import signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
signal.pause()
"""


def test_a_child_that_listens_and_never_answers(tmp_path: Path, children: list[Process]) -> None:
    """Its connection hangs, and the time to start is over all the same."""
    began = time.monotonic()
    error = not_started(tmp_path, Command(sys.executable, "-c", DEAF, "{socket}"), start_seconds=0.6)
    assert error.cause == "not ready in time"
    assert time.monotonic() - began < 60
    assert is_gone(children[0].pid)


def test_a_child_that_says_what_is_wrong_and_hangs(tmp_path: Path) -> None:
    said = "E RKNN: [16:06:38.734] This rknn model is for RK3588, but current platform is RK3576"
    launch = Launch(argv=("sh", "-c", f"echo '{said}'; sleep 60"), socket=tmp_path / "s")

    async def whole() -> None:
        process = await Process.start(launch, tmp_path / "log")
        try:
            for _ in range(3000):
                if process.diagnose().last_words == (said,):
                    break
                await asyncio.sleep(0.02)
            with pytest.raises(StartError) as caught:
                await _until_ready(process, Client(launch.socket), "p", 0.05, ())
        finally:
            await process.stop()
        assert caught.value.cause == "model converted for another chip"
        assert str(caught.value) == f"p was not ready after 0.05 s: {caught.value.cause}"
        assert caught.value.last_words == (said,)

    asyncio.run(whole())


def test_patience_with_a_silent_request_is_not_patience_with_a_start(tmp_path: Path) -> None:
    """A load may take longer than any silence of a request."""

    async def whole() -> None:
        engine = Command(sys.executable, "-c", DEAF, "{socket}")
        async with Runner.open(engine, placement(), tmp_path, start_seconds=0.8, hang_seconds=0.1):
            raise AssertionError("it started")

    with pytest.raises(StartError, match="not ready after"):
        asyncio.run(whole())


# -- when it fails at work


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"crash_after": "5"}, "SIGSEGV"),
        ({"oom_after": "5"}, "memory"),
        ({"exit_after": "5", "exit_code": "7"}, "exit code 7"),
        ({"die_slowly": "3", "decode": "500"}, "SIGABRT"),
    ],
)
def test_a_death_at_work(tmp_path: Path, children: list[Process], options: dict[str, str], cause: str) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(ChildDied) as caught:
            await runner.complete(ASK)
        error = caught.value
        assert cause in error.cause
        assert str(error) == f"p died: {error.cause}"
        assert any("scripted:" in line for line in error.last_words)
        assert is_gone(children[0].pid)
        for again in (runner.complete(ASK), runner.vocabulary_size(), runner.tokenize("x"), runner.distribution(ASK)):
            with pytest.raises(ChildDied) as later:
                await again
            assert later.value.cause == error.cause

    run(tmp_path, body, **options)


def test_what_came_before_a_death_is_seen(tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        seen = []
        with pytest.raises(ChildDied):
            async for event in runner.stream(ASK):
                seen.append(event)  # noqa: PERF401 (what came before the error counts)
        assert 1 <= len(seen) <= 5
        assert all(isinstance(event, Token) for event in seen)

    run(tmp_path, body, crash_after="5")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hang(tmp_path: Path, children: list[Process], streaming: bool) -> None:
    long_prompt = Completion(prompt=[5] * 60, max_tokens=20, ignore_eos=True)

    async def body(runner: Runner) -> None:
        began = time.monotonic()
        with pytest.raises(EngineTimeout, match=r"no response for 0\.5 s") as caught:
            if streaming:
                async for _ in runner.stream(long_prompt):
                    pass
            else:
                await runner.complete(long_prompt)
        assert caught.value.cause == "hang"
        assert time.monotonic() - began < 60
        assert not is_gone(children[0].pid)  # a hang is no death; leaving the context ends it

    run(tmp_path, body, hang_seconds=0.5, hang_after="4")
    assert is_gone(children[0].pid)


def test_a_refusal_leaves_the_child_at_work(tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(EngineError) as caught:
            await runner.complete(Completion(prompt=[5] * 600, max_tokens=1))
        assert 400 <= caught.value.status < 500
        await runner.complete(ASK)

    run(tmp_path, body)


@pytest.mark.parametrize("options", [{"refuse_requests": "not today"}, {"error_after": "4"}])
def test_errors_that_are_asked_for(tmp_path: Path, options: dict[str, str]) -> None:
    async def body(runner: Runner) -> None:
        for asked in (runner.complete(ASK), runner.complete(Chat(messages=[("user", "hi")], max_tokens=20))):
            with pytest.raises(RunError) as caught:
                await asked
            assert isinstance(caught.value, EngineError)

    run(tmp_path, body, **options)

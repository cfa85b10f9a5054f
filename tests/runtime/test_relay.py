"""An engine's bytes passed on: untouched, cancelled by leaving, and every failure told as a stream tells it."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_placement import scripted_placement

from trilithon.engines.base import Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.wire.messages import Timings
from trilithon.errors import ChildDied, EngineError, EngineTimeout, RunError
from trilithon.runtime.client import Client, Disconnected
from trilithon.runtime.relay import Relayed, timings_in
from trilithon.runtime.runner import Runner
from trilithon.runtime.taint import ErrorWatch

Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMINGS = {"cache_n": 2, "prompt_n": 5, "prompt_ms": 1.5, "predicted_n": 3, "predicted_ms": 7.5}
FAST = {"prefill": "100000", "decode": "2000", "noise": "0", "seed": "1"}
ASK = {"prompt": [5, 6, 7], "n_predict": 20, "ignore_eos": True, "stream": True}


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def whole(status: str, content: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%s" % (
        status.encode(),
        len(content),
        content,
    )


@contextlib.asynccontextmanager
async def serving(folder: Path, handler: Handler) -> AsyncIterator[Client]:
    """One handler for every request; it is given the head."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(folder / "s"))
    try:
        yield Client(folder / "s", hang_seconds=0.8)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sends(*pieces: bytes, pause_seconds: float = 0.0) -> Handler:
    async def handle(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return handle


async def asked(answer: Awaitable[None]) -> None:
    await answer


def relayed(client: Client, body: dict[str, Any] | None = None) -> contextlib.AbstractAsyncContextManager[Relayed]:
    return Relayed.open(client, "/completion", ASK if body is None else body, asked, ErrorWatch(None))


@contextlib.asynccontextmanager
async def opened(folder: Path, *, hang_seconds: float = 20.0, **options: str) -> AsyncIterator[Runner]:
    settings = Settings(context=4096, options=tuple((FAST | options).items()))
    placement = scripted_placement("p", settings)
    async with Runner.open(
        ScriptedEngine(), placement, folder, start_seconds=60.0, hang_seconds=hang_seconds
    ) as runner:
        yield runner


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(6000):
        if await found():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


class Line:
    """An outlet that is free for so many writes."""

    def __init__(self, writes: int):
        self.taken: list[bytes] = []
        self._left = writes

    def free(self) -> bool:
        return self._left > 0

    def write(self, content: bytes) -> None:
        self._left -= 1
        self.taken.append(content)


# -- answers that are right


def test_bytes_pass_untouched_with_the_moments_they_came(tmp_path: Path) -> None:
    texts = [b"data: 1\n\n", b"\xff\x00 no text\r\n", b'data: {"timings":' + json.dumps(TIMINGS).encode() + b"}\n\n"]
    pieces = [HEAD, *map(chunk, texts), b"0\r\n\r\n"]

    async def talk() -> None:
        async with serving(tmp_path, sends(*pieces, pause_seconds=0.02)) as client, relayed(client) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            assert answer.timings is None and not answer.complete
            assert b"".join([piece async for piece in answer.chunks()]) == b"".join(texts)
            assert answer.complete and answer.handover is None
            assert answer.timings == Timings.parse(TIMINGS)
            assert answer.last_ns - answer.first_ns > 30_000_000
            assert answer.last_ns <= time.monotonic_ns()

    asyncio.run(talk())


def test_an_answer_as_a_whole(tmp_path: Path) -> None:
    content = b"x" * 300_000

    async def talk() -> None:
        async with serving(tmp_path, sends(whole("202 OK", content))) as client, relayed(client, {}) as answer:
            assert (answer.status, answer.content_type) == (202, "a/b")
            assert await answer.read() == content
            assert answer.timings is None

    asyncio.run(talk())


@pytest.mark.parametrize("streamed", [True, False])
def test_the_body_goes_out_as_it_is_but_for_pings(tmp_path: Path, streamed: bool) -> None:
    body = {"stream": streamed, "grammar": 'root ::= "ä"', "sse_ping_interval": 3, "unknown": [None, {"a": 1.5}]}
    sent: list[dict[str, Any]] = []

    async def handle(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        sent.append(json.loads(await reader.readexactly(length)))
        writer.write(whole("200 OK", b"{}"))

    async def talk() -> None:
        async with serving(tmp_path, handle) as client, relayed(client, body) as answer:
            await answer.read()

    asyncio.run(talk())
    assert sent == [body | {"sse_ping_interval": -1} if streamed else body]


def test_every_dialect_of_an_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as runner:
            async with runner.relay("/completion", ASK) as answer:
                content = await answer.read()
                assert content.startswith(b"data: ") and answer.content_type.startswith("text/event-stream")
                assert answer.timings is not None
                assert (answer.timings.prompt_n, answer.timings.predicted_n) == (3, 20)
            chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            async with runner.relay("/v1/chat/completions", chat) as answer:
                assert json.loads(await answer.read())["usage"]["completion_tokens"] == 4
                assert answer.timings is not None and answer.timings.predicted_n == 4
            async with runner.relay("/tokenize", {"content": "stones"}) as answer:
                assert json.loads(await answer.read())["tokens"] and answer.timings is None

    asyncio.run(scenario())


@given(st.text(), st.text(), st.booleans())
def test_timings_are_not_taken_from_what_the_model_says(text: str, more: str, spaced: bool) -> None:
    said = {"content": text + '"timings":{"prompt_n": 9}' + more}
    separators = (", ", ": ") if spaced else (",", ":")
    assert timings_in(json.dumps(said, separators=separators).encode()) is None
    both = json.dumps(said | {"timings": TIMINGS} | {"rest": said}, separators=separators).encode()
    assert timings_in(both) == Timings.parse(TIMINGS)


@given(st.binary(max_size=40))
def test_timings_of_anything(tail: bytes) -> None:
    found = timings_in(b'"timings":' + tail)
    assert found is None or isinstance(found, Timings)


# -- refused, broken, silent


@pytest.mark.parametrize("content", [b'{"error":{"code":400,"message":"no such field"}}', b"no such field"])
def test_a_refusal_comes_before_the_block(tmp_path: Path, content: bytes) -> None:
    async def talk() -> None:
        async with serving(tmp_path, sends(whole("400 Bad", content))) as client:
            with pytest.raises(EngineError, match="no such field") as caught:
                async with relayed(client):
                    raise AssertionError("it was entered")
            assert caught.value.status == 400

    asyncio.run(talk())


def test_a_route_that_an_engine_lacks_is_named(tmp_path: Path) -> None:
    async def talk() -> None:
        async with serving(tmp_path, sends(whole("404 Not Found", b"{}"))) as client:
            with pytest.raises(EngineError, match="the engine has no /"):
                async with relayed(client):
                    raise AssertionError("it was entered")

    asyncio.run(talk())


@pytest.mark.parametrize(
    "pieces", [[], [b"HTTP/1.1 200 OK\r\n"], [HEAD, chunk(b"data: 1\n\n")], [HEAD, b"nonsense\r\n"], [b"SSH-2.0\r\n"]]
)
def test_a_connection_that_ends_early(tmp_path: Path, pieces: list[bytes]) -> None:
    async def talk() -> None:
        async with serving(tmp_path, sends(*pieces)) as client:
            with pytest.raises(Disconnected):
                async with relayed(client) as answer:
                    await answer.read()
            with pytest.raises(Disconnected):
                async with relayed(Client(tmp_path / "nobody")):
                    pass

    asyncio.run(talk())


def test_an_error_of_the_reader_is_its_own(tmp_path: Path) -> None:
    """The client's broken connection is none of the engine's."""

    async def talk() -> None:
        async with serving(tmp_path, sends(HEAD, chunk(b"data: 1\n\n"), pause_seconds=0.1)) as client:
            with pytest.raises(BrokenPipeError):
                async with relayed(client) as answer:
                    async for _ in answer.chunks():
                        raise BrokenPipeError("the browser is gone")

    asyncio.run(talk())


def slow_answer(states: int, begin: bytes, end: bytes) -> Handler:
    """Says `begin`, and then nothing for as long as `/slots` finds new states."""
    looks = 0
    over = asyncio.Event()

    async def handle(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        if head.startswith(b"GET /slots"):
            looks += 1
            writer.write(whole("200 OK", b'[{"n_decoded": %d}]' % min(looks, states)))
            if looks >= states:
                over.set()
            return
        writer.write(begin)
        await over.wait()
        if not end:
            await asyncio.sleep(30)
        writer.write(end)

    return handle


@pytest.mark.slow
@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + chunk(b"data: 1\n\n")])
def test_silence_while_the_slots_move_is_no_hang(tmp_path: Path, begin: bytes) -> None:
    """A place in a queue, an answer that is no stream, a call to a tool that is held back until it is whole."""
    end = chunk(b"data: 2\n\n") + b"0\r\n\r\n"

    async def talk() -> None:
        handler = slow_answer(12, begin, end if begin else HEAD + end)
        async with serving(tmp_path, handler) as client, relayed(client, {}) as answer:
            began = time.monotonic()
            assert (await answer.read()).endswith(b"data: 2\n\n")
            assert not begin or time.monotonic() - began > 0.8

    asyncio.run(talk())


@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + chunk(b"data: 1\n\n")])
def test_silence_of_all_slots_is_a_hang(tmp_path: Path, begin: bytes) -> None:
    async def talk() -> None:
        async with serving(tmp_path, slow_answer(1, begin, b"")) as client:
            with pytest.raises(EngineTimeout, match=r"no response for 0\.8 s"):
                async with relayed(client, {}) as answer:
                    await answer.read()

    asyncio.run(talk())


@pytest.mark.slow
def test_no_prompt_is_waited_for_longer_than_a_context_takes(tmp_path: Path) -> None:
    """Two tokens take a second at the slowest; whatever the text, and pictures by their number."""
    picture = {"image_url": {"url": "x" * 100_000}}
    for body in ({"prompt": "x" * 1_000_000}, {"messages": [{"content": [picture]}]}):

        async def talk(body: dict[str, Any]) -> None:
            async with serving(tmp_path, slow_answer(0, b"", b"")) as client:
                with pytest.raises(EngineTimeout, match=r"1\.8 s"):
                    async with Relayed.open(client, "/completion", body, asked, ErrorWatch(None), max_tokens=2):
                        pass

        asyncio.run(talk(body))


@pytest.mark.parametrize(("options", "cause"), [({"crash_after": "5"}, "SIGSEGV"), ({"oom_after": "5"}, "memory")])
def test_a_death_at_work_after_what_came(tmp_path: Path, options: dict[str, str], cause: str) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, **options) as runner:
            seen = []
            with pytest.raises(ChildDied) as caught:
                async with runner.relay("/completion", ASK) as answer:
                    async for piece in answer.chunks():
                        seen.append(piece)  # noqa: PERF401 (what came before the error counts)
            assert cause in caught.value.cause and caught.value.last_words
            assert b"".join(seen).count(b"data: ") == 5
            with pytest.raises(ChildDied):
                async with runner.relay("/completion", ASK):
                    pass

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_hang_of_an_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, hang_seconds=0.5, hang_after="4") as runner:
            for streamed in (True, False):
                with pytest.raises(RunError) as caught:
                    async with runner.relay("/completion", {**ASK, "stream": streamed}) as answer:
                        await answer.read()
                assert isinstance(caught.value, EngineTimeout)

    asyncio.run(scenario())


@pytest.mark.slow
def test_one_after_another_in_one_slot_is_no_hang(tmp_path: Path) -> None:
    """The second waits for longer than any silence is allowed, and the first sends nothing while it is made."""

    async def scenario() -> None:
        async with opened(tmp_path, hang_seconds=2.0, decode="20") as runner:

            async def ask() -> bytes:
                async with runner.relay("/completion", {**ASK, "n_predict": 60, "stream": False}) as answer:
                    return await answer.read()

            for content in await asyncio.gather(ask(), ask()):
                assert json.loads(content)["timings"]["predicted_n"] == 60

    asyncio.run(scenario())


# -- left early


@pytest.mark.parametrize("how", ["before", "within", "cancelled"])
def test_leaving_cancels(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, decode="20") as runner:

            async def ask() -> None:
                async with runner.relay("/completion", {**ASK, "n_predict": 2000}) as answer:
                    if how == "before":
                        return
                    async for _ in answer.chunks():
                        if how == "within":
                            return

            if how == "cancelled":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await ask()
            else:
                await ask()
            await until(runner.client.idle)

    asyncio.run(scenario())


def test_a_turn_is_held_to_the_end_of_the_work(tmp_path: Path) -> None:
    """Whoever leaves early does not wait, but the unit is busy until the engine has noticed."""
    held: list[str] = []

    @contextlib.asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        held.append("taken")
        try:
            yield
        finally:
            held.append("given back")

    async def given_back() -> bool:
        return held[2:] == ["taken", "given back"]

    async def scenario() -> None:
        async with opened(tmp_path, decode="50") as runner:
            runner.unit_lock = turn
            async with runner.relay("/tokenize", {"content": "hi"}) as answer:
                assert await answer.read() and held == []  # the unit has nothing to do with it
            async with runner.relay("/completion", {**ASK, "n_predict": 2}) as answer:
                assert held == ["taken"]
                await answer.read()
            assert held == ["taken", "given back"]
            async with runner.relay("/completion", {**ASK, "n_predict": 2000}) as answer:
                await anext(answer.chunks())
                os.kill(runner.process.pid, signal.SIGSTOP)  # in the middle of a long batch
            assert held == ["taken", "given back", "taken"]
            os.kill(runner.process.pid, signal.SIGCONT)
            await until(given_back)

    asyncio.run(scenario())


def test_it_may_be_left_in_another_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as runner, contextlib.AsyncExitStack() as stack:
            answer = await stack.enter_async_context(runner.relay("/completion", ASK))

            async def rest() -> bytes:
                async with stack:
                    return await answer.read()

            assert b"timings" in await asyncio.create_task(rest())

    asyncio.run(scenario())


# -- past the reader


def test_what_an_outlet_takes_is_not_given_to_the_reader(tmp_path: Path) -> None:
    texts = [b"data: %d\n\n" % number for number in range(6)] + [b'{"timings":' + json.dumps(TIMINGS).encode() + b"}"]
    pieces = [HEAD, *map(chunk, texts), b"0\r\n\r\n"]

    async def scenario() -> None:
        line = Line(3)
        async with serving(tmp_path, sends(*pieces, pause_seconds=0.02)) as client, relayed(client) as answer:
            given = [content async for content in answer.chunks(line)]
            assert b"".join(line.taken + given) == b"".join(texts)
            assert len(line.taken) == 3
            assert answer.timings == Timings.parse(TIMINGS)
            assert answer.first_ns < answer.last_ns

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("last", "words"), [(b"no chunk\r\n", "not a chunk size"), (b"", "broke"), (b"9\r\nhalf", "broke")]
)
def test_what_breaks_on_the_way_to_an_outlet_is_told_to_the_reader(tmp_path: Path, last: bytes, words: str) -> None:
    pieces = [HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), last]

    async def scenario() -> None:
        line = Line(100)
        async with serving(tmp_path, sends(*pieces, pause_seconds=0.02)) as client, relayed(client) as answer:
            with pytest.raises(RunError, match=words):
                line.taken += [content async for content in answer.chunks(line)]
        assert b"".join(line.taken).startswith(b"data: 1\n\ndata: 2\n\n")

    asyncio.run(scenario())


def test_a_hang_is_seen_behind_an_outlet(tmp_path: Path) -> None:
    async def handle(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/slots" in head:
            return
        writer.write(HEAD + chunk(b"data: 1\n\n"))
        for number in range(5):
            await asyncio.sleep(0.05)
            writer.write(chunk(b"data: %d\n\n" % number))
        await asyncio.sleep(60)

    async def scenario() -> None:
        line = Line(100)
        async with serving(tmp_path, handle) as client, relayed(client, {"prompt": [1], "stream": True}) as answer:
            with pytest.raises(EngineTimeout):
                line.taken += [content async for content in answer.chunks(line)]
        assert b"data: 4" in b"".join(line.taken)

    asyncio.run(scenario())

"""An answer on its way to a client that reads, dawdles, leaves, or gets what broke off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from trilithon.errors import EngineError
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.protocol import OUTLET
from trilithon.serve.http.streaming import EVENTS, Outgoing, Reply

Messages = list[dict[str, Any]]


class Source:
    """Says when it is opened, and when it is closed again."""

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]] | None = None, refuses: str = ""):
        self.opened, self.closed = asyncio.Event(), asyncio.Event()
        self._chunks = chunks
        self._refuses = refuses

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Outgoing]:
        if self._refuses:
            raise ApiError(self._refuses, status=400)
        self.opened.set()
        try:
            if self._chunks is None:
                yield Outgoing(body=b"whole", headers={"X-Some": "thing"})
            else:
                yield Outgoing(body=self._chunks(), content_type=EVENTS)
        finally:
            self.closed.set()


def broken(problem: ApiError) -> bytes:
    return f"broken: {problem}".encode()


class Line:
    """A connection's outlet, free or not."""

    def __init__(self, found: list[str], free: bool = True):
        self.taken = b""
        self._found, self._free = found, free

    def free(self) -> bool:
        return self._free

    def write(self, content: bytes) -> None:
        self.taken += content
        self._found.append("outlet")


async def staying() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def sent(source: Source) -> Messages:
    found: Messages = []

    async def send(message: Any) -> None:
        found.append(message)

    await Reply(source, broken)({}, staying, send)
    return found


def body(messages: Messages) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def test_a_whole_answer_has_its_length() -> None:
    source = Source()
    start, *rest = asyncio.run(sent(source))
    headers = dict(start["headers"])
    assert (headers[b"content-length"], headers[b"x-some"]) == (b"5", b"thing")
    assert body(rest) == b"whole"
    assert rest[-1]["more_body"] is False
    assert source.closed.is_set()


def test_a_stream_comes_as_it_is_made() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(5):
            yield str(number).encode()
            await asyncio.sleep(0.001)

    start, *rest = asyncio.run(sent(Source(chunks)))
    assert dict(start["headers"])[b"content-type"] == EVENTS.encode()
    assert body(rest) == b"01234"
    assert len(rest) > 3


def test_an_error_before_the_first_byte_is_an_ordinary_one() -> None:
    with pytest.raises(ApiError, match="not so"):
        asyncio.run(sent(Source(refuses="not so")))


def test_an_error_in_the_middle_is_told_in_the_stream() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half "
        raise EngineError("it broke", status=502)

    messages = asyncio.run(sent(Source(chunks)))
    assert body(messages) == b"half broken: it broke"
    assert messages[-1]["more_body"] is False


def test_what_nobody_expected_breaks_the_connection_off() -> None:
    """A client must not take half an answer for the whole."""
    found: Messages = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("a bug")

    async def send(message: Any) -> None:
        found.append(message)

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(Reply(Source(chunks), broken)({}, staying, send))
    assert all(message.get("more_body", True) for message in found)


def test_a_slow_reader_keeps_no_engine() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100

    async def scenario() -> None:
        source, reads, found = Source(chunks), asyncio.Event(), []

        async def send(message: Any) -> None:
            await reads.wait()
            found.append(message)

        reply = asyncio.create_task(Reply(source, broken)({}, staying, send))
        await asyncio.wait_for(source.closed.wait(), 10)
        assert not found
        reads.set()
        await reply
        assert body(found) == b"x" * 100_000

    asyncio.run(scenario())


def test_what_waits_to_be_read_is_bounded() -> None:
    made = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * (1 << 20)

    async def scenario() -> None:
        leaves = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            await asyncio.Event().wait()

        source = Source(chunks)
        reply = asyncio.create_task(Reply(source, broken)({}, receive, send))
        await asyncio.sleep(0.1)
        assert 0 < made < 10
        leaves.set()
        await asyncio.wait_for(reply, 10)
        assert source.closed.is_set()

    asyncio.run(scenario())


def test_leaving_ends_the_work_while_nothing_is_sent() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b"never"

    async def scenario() -> None:
        source = Source(chunks)

        async def receive() -> dict[str, Any]:
            await source.opened.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        await asyncio.wait_for(Reply(source, broken)({}, receive, send), 10)
        assert source.closed.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize("free", [True, False])
def test_a_stream_takes_the_outlet_between_its_first_and_its_last_while_it_is_free(free: bool) -> None:
    way: list[str] = []
    line, messages = Line(way, free), []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(5):
            await asyncio.sleep(0.001)
            yield str(number).encode()

    async def send(message: Any) -> None:
        messages.append(message)
        way.append("send")

    asyncio.run(Reply(Source(chunks), broken)({OUTLET: line}, staying, send))
    assert (line.taken, body(messages)) == ((b"01234", b"") if free else (b"", b"01234"))
    assert (way[0], way[-1]) == ("send", "send")


def test_an_answer_with_a_length_is_sent_by_send_alone() -> None:
    line, messages = Line([]), []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(Reply(Source())({OUTLET: line}, staying, send))
    assert (line.taken, body(messages)) == (b"", b"whole")

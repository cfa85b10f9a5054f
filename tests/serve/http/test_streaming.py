"""An answer on its way to a client that reads, dawdles, leaves, or gets what broke off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trilithon.errors import EngineError
from trilithon.serve.http.errors import ApiError, api_error_of
from trilithon.serve.http.keep_alive import BLANK, COMMENT, EVENTS, PING, StreamForm, StreamTimes
from trilithon.serve.http.protocol import OUTLET
from trilithon.serve.http.streaming import Outgoing, Reply
from trilithon.serve.request_record import RequestRecord, recording

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


FORM = StreamForm(broken=broken)


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

    await Reply(source, FORM)({}, staying, send)
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
        asyncio.run(Reply(Source(chunks), FORM)({}, staying, send))
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

        reply = asyncio.create_task(Reply(source, FORM)({}, staying, send))
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
        reply = asyncio.create_task(Reply(source, FORM)({}, receive, send))
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

        await asyncio.wait_for(Reply(source, FORM)({}, receive, send), 10)
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

    asyncio.run(Reply(Source(chunks), FORM)({OUTLET: line}, staying, send))
    assert (line.taken, body(messages)) == ((b"01234", b"") if free else (b"", b"01234"))
    assert (way[0], way[-1]) == ("send", "send")


def test_an_answer_with_a_length_is_sent_by_send_alone() -> None:
    line, messages = Line([]), []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(Reply(Source())({OUTLET: line}, staying, send))
    assert (line.taken, body(messages)) == (b"", b"whole")


def impatient(open_after: float = 0.0, silent: float = 0.01) -> dict[str, Any]:
    """A scope."""
    times = StreamTimes(open_after_seconds=open_after, silent_seconds=silent)
    return {"app": SimpleNamespace(state=SimpleNamespace(stream_times=times))}


def test_a_stream_that_waits_is_opened_and_kept_alive() -> None:
    async def scenario() -> Messages:
        messages: Messages = []
        waited = asyncio.Event()

        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[Outgoing]:
            await waited.wait()
            yield Outgoing(body=chunks(), content_type="never/seen", headers={"X-Late": "1"})

        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"

        async def send(message: Any) -> None:
            messages.append(message)
            if body(messages).count(COMMENT) == 3:
                waited.set()

        reply = Reply(opening, FORM, {"X-Early": "1"})
        await asyncio.wait_for(reply(impatient(), staying, send), 10)
        return messages

    start, *rest = asyncio.run(scenario())
    headers = dict(start["headers"])
    assert (headers[b"content-type"], headers[b"x-early"]) == (EVENTS.encode(), b"1")
    assert b"x-late" not in headers
    assert body(rest) == COMMENT * 3 + b"data: 1\n\n"
    assert rest[-1]["more_body"] is False


@pytest.mark.parametrize("error", [ApiError("full", status=503), EngineError("it broke", status=502)])
def test_an_error_after_the_head_is_told_in_the_stream(error: Exception) -> None:
    messages: Messages = []

    async def scenario() -> None:
        opened = asyncio.Event()

        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[Outgoing]:
            await opened.wait()
            raise error
            yield

        async def send(message: Any) -> None:
            messages.append(message)
            opened.set()

        record = RequestRecord(request_id="1", method="POST", path="/", began_ns=0)
        with recording(record):
            await Reply(opening, FORM)(impatient(), staying, send)
        assert record.told_status == api_error_of(error).status

    asyncio.run(scenario())
    assert body(messages).removeprefix(COMMENT) == f"broken: {error}".encode()
    assert messages[-1]["more_body"] is False


def test_who_wants_no_stream_gets_no_byte_before_the_answer() -> None:
    messages: Messages = []

    async def scenario() -> None:
        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[Outgoing]:
            await asyncio.sleep(0.1)
            yield Outgoing(body=b"whole")

        async def send(message: Any) -> None:
            messages.append(message)

        await Reply(opening)(impatient(), staying, send)

    asyncio.run(scenario())
    assert dict(messages[0]["headers"])[b"content-length"] == b"5"
    assert body(messages) == b"whole"


def test_silence_between_events_is_broken_and_that_within_one_is_not() -> None:
    messages: Messages = []

    async def scenario() -> None:
        kept_alive = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await kept_alive.wait()
            yield b"data: "
            await asyncio.sleep(0.1)
            yield b"2\n\n"

        async def send(message: Any) -> None:
            messages.append(message)
            if b"1\n\n" + COMMENT in body(messages):
                kept_alive.set()

        await asyncio.wait_for(Reply(Source(chunks), FORM)(impatient(), staying, send), 10)

    asyncio.run(scenario())
    assert b"data: 2\n\n" in body(messages)


def test_a_reader_that_does_not_read_is_not_sent_more_and_more() -> None:
    async def scenario() -> int:
        sent_after = 0
        reads = asyncio.Event()
        source = Source(silence)

        async def send(message: Any) -> None:
            nonlocal sent_after
            sent_after += len(message.get("body", b""))
            await reads.wait()

        reply = asyncio.create_task(Reply(source, FORM)(impatient(), staying, send))
        await asyncio.sleep(0.2)
        reads.set()
        await reply
        return sent_after

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.15)
        yield b"end"

    assert asyncio.run(scenario()) <= 2 * len(COMMENT) + 3


def test_a_keep_alive_is_no_first_token() -> None:
    record = RequestRecord(request_id="1", method="POST", path="/", began_ns=0, streamed=True)
    for content in (COMMENT, PING, BLANK):
        record.sent(content)
    assert record.first_token_ns is None and record.sent_bytes == len(COMMENT + PING + BLANK)
    record.sent(COMMENT + b"data: 1\n\n")
    assert record.first_token_ns is not None

"""More connections than there are descriptors for: idle ones make room, the log stays short."""

import asyncio
import contextlib
import errno
import logging
import resource
import socket

import pytest
from small_server import Door, at_the_door

from trilithon.serve.access.security import SecurityOptions
from trilithon.serve.http import connections, protocol
from trilithon.serve.http.connections import most_connections, quiet_accept_errors

MOST = 4
CLOSING = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "most_connections", lambda: MOST)


async def connected(door: Door) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", door.port)


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_the_connections_that_are_idle_longest_make_room(few: None, head: bytes) -> None:
    async def visit(door: Door) -> None:
        kept = []
        for _ in range(3 * MOST):
            kept.append(await connected(door))
            kept[-1][1].write(head)
            assert (await door.http.get("/health")).status_code == 200
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(kept[0][0].read(), 20) == b""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kept[-1][0].read(), 0.1)
        for _, writer in kept:
            writer.close()

    at_the_door(SecurityOptions(), visit)


def test_where_all_are_at_work_a_new_one_is_told_to_come_again(few: None) -> None:
    async def visit(door: Door) -> None:
        busy = [await connected(door) for _ in range(MOST)]
        for reader, writer in busy:
            writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        answer = await door.raw(b"")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"too many connections" in answer
        busy.pop()[1].close()
        async with asyncio.timeout(20):
            while not (await door.raw(CLOSING)).startswith(b"HTTP/1.1 200"):  # noqa: ASYNC110 (nothing tells it)
                await asyncio.sleep(0.01)
        for _, writer in busy:
            writer.close()

    at_the_door(SecurityOptions(), visit)


def test_a_request_that_waits_to_be_read_is_answered(few: None) -> None:
    """More connections than there is room for are accepted in one round of the loop, before any of them is read."""

    async def visit(door: Door) -> None:
        clients = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(3 * MOST)]
        for client in clients:
            client.sendall(CLOSING)
        answers = []
        for client in clients:
            reader, writer = await asyncio.open_connection(sock=client)
            answers.append((await asyncio.wait_for(reader.read(), 20))[:12])
            writer.close()
        assert set(answers) == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        assert answers.count(b"HTTP/1.1 200") >= MOST

    at_the_door(SecurityOptions(), visit)


def test_one_line_a_minute_says_that_it_is_full(
    few: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections._full, "_written_at", float("-inf"))

    async def visit(door: Door) -> None:
        kept = [await connected(door) for _ in range(5 * MOST)]
        assert (await door.http.get("/health")).status_code == 200
        for _, writer in kept:
            writer.close()

    with caplog.at_level(logging.WARNING, "trilithon.connections"):
        at_the_door(SecurityOptions(), visit)
    assert sum("ulimit -n" in message for message in caplog.messages) == 1


def test_an_accept_loop_without_descriptors_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        loop = asyncio.get_running_loop()
        quiet_accept_errors(loop)
        for _ in range(2000):
            error = OSError(errno.EMFILE, "Too many open files")
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
        loop.call_exception_handler({"message": "something else", "exception": RuntimeError("seen")})

    with caplog.at_level(logging.WARNING):
        asyncio.run(whole())
    assert sum("no connection can be accepted" in message for message in caplog.messages) == 1
    assert any("something else" in message for message in caplog.messages)


def test_the_limit_follows_that_of_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert most_connections() == (256 - 64) // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

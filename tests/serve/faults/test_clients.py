"""Clients that come all at once, vanish, dawdle, or leave half a connection behind."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live_server import Serve, Server
from load import body, children, many, open_files, ready_again

BUSY = "scripted/cpu:prefill=100000,decode=5000,np=8"


@pytest.mark.slow
def test_many_at_once_are_answered_or_told_to_come_back(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement=BUSY, slots=8, max_waiting=100)
    found = asyncio.run(many(server, 300))
    assert set(found) <= {"whole", "error"}, found
    assert found["whole"] >= 100
    ready_again(server)


@pytest.mark.slow
def test_a_thousand_at_once(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement=BUSY, slots=8, max_waiting=2000)
    found = asyncio.run(many(server, 1000))
    assert found == {"whole": 1000}
    ready_again(server)


def test_who_has_to_come_back_is_told_when(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=100", max_waiting=1)
    ready_again(server)  # who waits for a model to be loaded waits too
    asked = [socket.create_connection(address(server)) for _ in range(2)]
    for number, connection in enumerate(asked):
        connection.sendall(request(server, 500))
        until(lambda: sum(loaded.users + loaded.waiting for loaded in server.pool.loaded()) > number)  # noqa: B023
    refused = server.http.post("/v1/chat/completions", json=body(server))
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    for connection in asked:
        connection.close()


@pytest.mark.slow
def test_clients_that_vanish_leave_nothing_behind(serve: Serve, tiny: Path) -> None:
    others = children()
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=500,np=4", slots=4)
    asyncio.run(many(server, 4))
    files = open_files()
    found = asyncio.run(many(server, 100, tokens=20, leaving=0.2))
    assert found["left"] >= 10
    assert found["whole"] + found["left"] == 100, found
    idle(server)
    assert len(children() - others) == 1
    until(lambda: open_files() <= files + 3)


def test_leaving_ends_the_answer(serve: Serve, tiny: Path) -> None:
    """An answer of 100 s is not waited for when nobody reads it."""
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=50")
    connection = socket.create_connection(address(server))
    connection.sendall(request(server, 5000))
    assert connection.recv(4096)
    connection.close()
    ready_again(server, 10)


def test_a_client_that_reads_slowly_holds_nobody_up(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=20000,np=2", slots=2)
    connection = socket.create_connection(address(server))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(request(server, 4000))  # and reads nothing
    found = asyncio.run(many(server, 10, tokens=10))
    assert found == {"whole": 10}
    connection.close()


def test_half_closed_and_half_sent(serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    for sent in (b"", b"POST /v1/chat/comp", request(server, 4)[:-5]):
        connection = socket.create_connection(address(server))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(20)
        while connection.recv(4096):
            pass
        connection.close()
    ready_again(server)


def test_a_model_that_is_removed_while_it_is_loaded(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gone.gguf"
    copy.write_bytes(tiny.read_bytes())
    server = serve(copy)
    ready_again(server)
    copy.unlink()
    found = asyncio.run(many(server, 3))
    assert set(found) <= {"whole", "error"}, found


def test_after_everything_the_server_ends_clean(serve: Serve, tiny: Path) -> None:
    server = serve(tiny)
    asyncio.run(many(server, 10, leaving=0.5))
    assert server.http.get("/health").status_code == 200


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


def request(server: Server, tokens: int) -> bytes:
    content = json.dumps(body(server, tokens)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def idle(server: Server) -> None:
    until(lambda: not any(loaded.users or loaded.waiting for loaded in server.pool.loaded()))


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Connections whose clients never finish a header or never read: real sockets, and limits of a fraction of a second."""

import asyncio
import contextlib
import functools
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from live_server import Serve, Server
from small_server import Door, at_the_door
from uvicorn.server import ServerState

from trilithon.runtime.exchange import ChunkedBody
from trilithon.serve.access.security import SecurityOptions
from trilithon.serve.generation import AnswerReader
from trilithon.serve.http.protocol import PatientProtocol


def impatient(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(PatientProtocol, name, value)


def test_an_answer_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a listening socket that was made without a protocol's number, as this one and systemd's may be."""
    found: list[int] = []
    before = PatientProtocol.connection_made

    def connection_made(self: PatientProtocol, transport: asyncio.Transport) -> None:
        before(self, transport)
        found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(PatientProtocol, "connection_made", connection_made)

    async def visit(door: Door) -> None:
        assert (await door.http.get("/health")).status_code == 200

    at_the_door(SecurityOptions(), visit)
    assert all(found)
    assert found


def test_headers_that_never_end_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, header_seconds=0.3)

    async def visit(door: Door) -> None:
        heads = (b"", b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        await asyncio.gather(*(linger(door, head) for head in heads))

    async def linger(door: Door, head: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(head)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 15) == b""
        writer.close()

    at_the_door(SecurityOptions(), visit)


def test_a_byte_of_a_header_now_and_then_does_not_hold_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, header_seconds=0.5)

    async def visit(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # after an answer, too
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1200):
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.05)
            raise AssertionError("held for a minute")
        writer.close()

    at_the_door(SecurityOptions(), visit)


def test_a_long_answer_outlives_the_limit_of_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, header_seconds=0.1)

    async def visit(door: Door) -> None:
        for _ in range(2):  # the connection is kept
            assert (await door.http.get("/stream")).text.count("data:") == 3

    at_the_door(SecurityOptions(), visit)


def test_a_client_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, stalled_seconds=0.3)

    async def visit(door: Door) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        metrics = door.app.state.metrics
        for _ in range(3000):
            if b'route="/endless"' in (await metrics.text(None))[0]:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the answer to one who does not read never ended")
        writer.close()

    at_the_door(SecurityOptions(), visit)


def test_a_stream_is_framed_for_whom_it_is(serve: Serve, tiny: Path) -> None:
    """In chunks, also past uvicorn, for who knows them; until the connection's end for a client of HTTP/1.0."""
    server = serve(tiny)
    body = {"model": server.model, "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 20}
    texts = {version: _asked_raw(server, version, body) for version in ("1.0", "1.1")}
    assert b"Transfer-Encoding: chunked".lower() in texts["1.1"][0].lower()
    assert b"transfer-encoding" not in texts["1.0"][0].lower()
    chunked = ChunkedBody()
    bodies = chunked.feed(texts["1.1"][1]), texts["1.0"][1]
    assert chunked.complete
    assert [len(AnswerReader().feed(each)) for each in bodies] == [20, 20]


def _asked_raw(server: Server, version: str, body: dict[str, object]) -> tuple[bytes, bytes]:
    """The head and the body, as they came."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", server.http.base_url.port or 0), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    found = answer.partition(b"\r\n\r\n")
    return found[0], found[2]


@pytest.mark.parametrize("closing", ["half", "half later", "whole"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_only_a_client_that_reads_on_gets_its_answer(family: str, closing: str, tmp_path: Path) -> None:
    """Also where it has shut down its own direction, whenever it does so; one that has left ends the work."""
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert not (await receive()).get("more_body")
        leaving = asyncio.create_task(receive())
        await asyncio.wait({leaving}, timeout=20 if closing == "whole" else 1.5)
        ended.append("left" if leaving.done() else "answered")
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> bytes:
        config = uvicorn.Config(app, http=PatientProtocol, ws="none", lifespan="off")
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        make = functools.partial(PatientProtocol, config, state, {})
        if family == "unix":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "socket"))
            listening.listen()
        else:
            listening = socket.create_server(("127.0.0.1", 0))
        connection = socket.socket(listening.family)
        connection.connect(listening.getsockname())
        async with await loop.create_server(make, sock=listening):
            reader, writer = await asyncio.open_connection(sock=connection)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
            await asyncio.sleep(1.1 if closing == "half later" else 0)
            if closing == "whole":
                await asyncio.sleep(0.1)
                writer.close()
            else:
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 30) if closing != "whole" else b""
            writer.close()
            while state.tasks:
                await asyncio.wait(state.tasks)
        return answer

    answer = asyncio.run(run())
    assert ended == ["left" if closing == "whole" else "answered"]
    assert answer.endswith(b"ok") == (closing != "whole")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
        (b"GET /?" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
        (b"GET /" + b"a" * 300_000, b"414"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 66_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 300_000, b"431"),
        (b"NONSENSE\r\n\r\n", b"400"),
    ],
)
def test_a_head_that_is_too_long_is_told_so(request_head: bytes, status: bytes) -> None:
    async def visit(door: Door) -> None:
        answer = await door.raw(request_head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer.split(b" ", 2)[1] == status

    at_the_door(SecurityOptions(), visit)


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_body_in_small_chunks_is_whole(size: int) -> None:
    content = bytes(range(256)) * 200
    chunks = (content[at : at + size] for at in range(0, len(content), size))
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    second = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"

    async def visit(door: Door) -> None:
        answer = await door.raw(head + coded + second)
        assert f'"bytes":{len(content)}'.encode() in answer
        assert b'"bytes":3' in answer

    at_the_door(SecurityOptions(), visit)


def test_a_compressed_body_is_told_so() -> None:
    async def visit(door: Door) -> None:
        for path in ("/api/chat", "/v1/messages", "/api/blobs/x"):
            answer = await door.http.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
            assert (answer.status_code, "Content-Encoding gzip" in answer.text) == (415, True)
            plain = await door.http.post(path, content=b"{}", headers={"Content-Encoding": "identity"})
            assert plain.status_code == 200

    at_the_door(SecurityOptions(), visit)

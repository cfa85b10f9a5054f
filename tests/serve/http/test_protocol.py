"""Connections whose clients never finish a header or never read: real sockets, and limits of a fraction of a second."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest
from live_server import Serve, Server
from small_server import Door, at_the_door

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

"""One request over a socket, against servers that do not read to its end."""

import asyncio
import contextlib
import itertools
from pathlib import Path

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.exchange import ChunkedBody, Exchange

ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


def test_a_server_that_answers_by_the_head_alone_is_heard(tmp_path: Path) -> None:
    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            writer.write(ANSWER)
            writer.close()
            await writer.wait_closed()

    async def ask(socket: Path) -> tuple[int | None, bytes]:
        async with Exchange.open(Endpoint(socket), "POST", "/infill", {"input_prefix": "x" * 500}) as exchange:
            content = b""
            while not exchange.complete:
                await exchange.wait(10)
                content += b"".join(piece for _, piece in exchange.read())
            return exchange.status, content

    async def many() -> None:
        server = await asyncio.start_unix_server(answer_and_close, str(tmp_path / "s"))
        try:
            answers = await asyncio.gather(*(ask(tmp_path / "s") for _ in range(50)))
        finally:
            server.close()
            await server.wait_closed()
        assert set(answers) == {(404, b"no")}

    asyncio.run(many())


def test_one_alarm_is_put_off_brought_forward_and_goes(tmp_path: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(1000)
        writer.close()

    async def ask() -> bytes:
        content = b""
        async with Exchange.open(Endpoint(tmp_path / "s"), "POST", "/x", {}) as exchange:
            limit = 60.0
            with pytest.raises(TimeoutError):
                while True:
                    await exchange.wait(limit)
                    content += b"".join(piece for _, piece in exchange.read())
                    limit = 0.5
        return content

    async def whole() -> bytes:
        server = await asyncio.start_unix_server(drip, str(tmp_path / "s"))
        async with server:
            return await asyncio.wait_for(ask(), 30)

    assert asyncio.run(whole()) == b"xxxxx"


bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n" + trailer + b"\r\n"


@given(bodies, st.sampled_from([b"", b"Expires: never\r\n"]), st.lists(st.integers(0, 400), max_size=8))
def test_chunks_are_taken_apart_wherever_the_network_cuts(pieces: list[bytes], trailer: bytes, cuts: list[int]) -> None:
    content, body, found = chunked(pieces, trailer), ChunkedBody(), b""
    edges = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        assert not body.complete
        found += body.feed(content[begin:end])
    assert found == b"".join(pieces)
    assert body.complete


@pytest.mark.parametrize("content", [b"x\r\n", b"-1\r\n", b"\r\n", b"3\r\nabcd\r\n", b"1" * 5000, b"f" * 16 + b"\r\n"])
def test_what_is_no_chunk_is_refused(content: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        ChunkedBody().feed(content)


@given(st.binary(max_size=80))
def test_any_bytes_are_chunks_or_refused(content: bytes) -> None:
    with contextlib.suppress(h11.RemoteProtocolError):
        ChunkedBody().feed(content)

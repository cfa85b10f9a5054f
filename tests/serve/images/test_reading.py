"""Pictures inside a request and behind addresses: a real web server on loopback, which is let in for the test alone."""

import asyncio
import base64
import contextlib
import functools
import ipaddress
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.http.errors import ApiError
from trilithon.serve.images.addresses import Address, is_public, resolve
from trilithon.serve.images.kinds import picture_kind, picture_size
from trilithon.serve.images.reading import ImagePolicy, decode_image, fetch_image

HERE = ipaddress.ip_address("127.0.0.1")
NO_FETCHING = ImagePolicy()


def png(width: int = 1, height: int = 1) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    application = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    frame = b"\xff\xc2\x00\x0b\x08" + struct.pack(">HH", height, width) + b"\x01\x01\x11\x00"
    return b"\xff\xd8" + application + b"\xff" + frame + b"\xff\xd9"  # one 0xFF to fill


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def webp(width: int, height: int, form: str) -> bytes:
    if form == "VP8X":
        body = b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif form == "VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    else:
        body = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    chunk = form.ljust(4).encode() + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


PICTURES = {
    "png": png(300, 200),
    "jpeg": jpeg(300, 200),
    "gif": gif(300, 200),
    "webp lossy": webp(300, 200, "VP8"),
    "webp lossless": webp(300, 200, "VP8L"),
    "webp extended": webp(300, 200, "VP8X"),
}


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def fetched(url: str, policy: ImagePolicy = NO_FETCHING) -> bytes:
    return asyncio.run(fetch_image(url, policy))


def refused(url: str, policy: ImagePolicy = NO_FETCHING) -> str:
    with pytest.raises(ApiError) as told:
        fetched(url, policy)
    assert told.value.status == 400
    assert len(str(told.value)) < 300
    return str(told.value)


# -- what it is


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_known_by_its_bytes(name: str) -> None:
    data = PICTURES[name]
    assert picture_kind(data) == name.partition(" ")[0]
    assert picture_size(data) == (300, 200)
    assert fetched(data_url(data, "text/html")) == data  # whatever is said of it


@given(st.binary(max_size=200), st.sampled_from([b"", *PICTURES.values()]), st.integers(0, 60))
def test_any_bytes_have_an_answer(noise: bytes, picture: bytes, cut: int) -> None:
    for data in (noise, picture[:cut], picture[:cut] + noise):
        size = picture_size(data)
        assert size is None or min(size) > 0


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"BM" + b"\0" * 60, b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"\xff\xd8", b"II*\0"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert "not an image" in refused(data_url(data))


def test_a_picture_that_unpacks_into_gigabytes_is_refused() -> None:
    assert "100000 x 100000 pixels" in refused(data_url(png(100000, 100000)))
    assert "damaged" in refused(data_url(png(0, 5)))
    assert "damaged" in refused(data_url(PICTURES["jpeg"][:20]))


# -- inside the request


def test_base64_in_all_the_forms_that_clients_send() -> None:
    text = base64.b64encode(png()).decode()
    spread = "\r\n".join(text[at : at + 20] for at in range(0, len(text), 20))
    for form in (text, text.rstrip("="), spread, data_url(png()), f"DATA:image/png;charset=x;base64,{text}"):
        assert decode_image(form, NO_FETCHING) == png()
    percent = "data:image/png," + "".join(f"%{byte:02x}" for byte in png())
    assert fetched(percent) == png()


@pytest.mark.parametrize(
    "text", ["", "%%%", "aGk", "Zm9v!", "é", "a", "data:", "data:image/png;base64", "data:image/png;base64,!"]
)
def test_base64_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ApiError):
        decode_image(text, NO_FETCHING)


@given(st.text(max_size=100))
def test_any_text_is_a_picture_or_a_problem(text: str) -> None:
    for form in (text, f"data:{text}", f"data:;base64,{text}"):
        with pytest.raises(ApiError):
            decode_image(form, NO_FETCHING)


def test_size_is_bounded_before_anything_is_unpacked() -> None:
    small = replace(NO_FETCHING, most_bytes=len(png()))
    assert fetched(data_url(png()), small) == png()
    assert "larger than" in refused(data_url(png() + b"x"), small)
    assert "larger than" in refused("data:," + "x" * 1000, small)


# -- behind an address


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "ftp://x/y.png", "gopher://x", "", "HTTPS//x", "C:\\x.png"]
)
def test_nothing_of_this_machine_and_no_odd_schemes(url: str) -> None:
    assert "data: URL" in refused(url, ImagePolicy(fetch_remote=True))


def test_nothing_is_fetched_unless_allowed() -> None:
    assert "not fetched" in refused("https://example.org/x.png")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "203.0.113.1",
        "::",
        "::1",
        "fe80::1",
        "fec0::1",
        "fd00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:192.168.1.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2002:7f00:1::1",
        "2002:c0a8:101::1",
        "2001:0:7f00:1::1",
    ],
)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_an_address_that_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_does_not_make_it_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    assert is_public(mapped) == is_public(address)
    translated = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    assert is_public(translated) == is_public(address)
    if not is_public(address):
        assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | number << 80))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_however_it_is_written(host: str) -> None:
    assert "public internet" in refused(f"http://{host}:9/x.png", ImagePolicy(fetch_remote=True))


Reply = Callable[[str], bytes]


class Web:
    """A web server on loopback: `replies` gives what it answers to a path. Keeps what it was asked."""

    def __init__(self, reply: Reply):
        self.reply = reply
        self.asked: list[bytes] = []
        self.names: list[str] = []
        self.serving: list[asyncio.Task[None]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.append(task)
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        with contextlib.suppress(ConnectionError):
            writer.write(self.reply(head.split(b" ")[1].decode()))
            await writer.drain()
            if b"slow" in head:
                await reader.read()  # until the client leaves
        writer.close()

    async def looks_up(self, host: str, port: int) -> list[Address]:
        """Names with "inner" in them are of a private network; the rest is this server."""
        self.names.append(host)
        return [ipaddress.ip_address("10.0.0.1" if "inner" in host else "127.0.0.1")]

    def policy(self, **more: Any) -> ImagePolicy:
        return ImagePolicy(
            fetch_remote=True,
            permits=lambda address: address == HERE,
            looks_up=self.looks_up,
            **{"limit_seconds": 10.0} | more,
        )


@contextlib.asynccontextmanager
async def opened(reply: Reply) -> AsyncIterator[Web]:
    web = Web(reply)
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        await asyncio.gather(*web.serving)
        await asyncio.sleep(0.01)  # connections close a turn later


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def onward(to: str) -> bytes:
    return answer(b"", "302 Found", f"Location: {to}\r\n")


def at_the_web(reply: Reply, url: str, **policy: Any) -> tuple[bytes | ApiError, Web]:
    async def run() -> tuple[bytes | ApiError, Web]:
        async with opened(reply) as web:
            try:
                return await fetch_image(url.replace("PORT", str(web.port)), web.policy(**policy)), web
            except ApiError as problem:
                return problem, web

    return asyncio.run(run())


def test_a_picture_is_fetched_from_the_address_that_was_judged() -> None:
    found, web = at_the_web(lambda _: answer(png()), "http://pictures.example:PORT/a.png?b=c")
    assert found == png()
    assert web.names == ["pictures.example"]  # once: a second look might give another address
    (head,) = web.asked
    assert head.startswith(b"GET /a.png?b=c HTTP/1.1\r\n")
    assert b"Host: pictures.example:" in head
    assert b"authorization" not in head.lower()
    assert b"cookie" not in head.lower()


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    found, _ = at_the_web(lambda _: answer(png()), "http://pictures.example:PORT/")
    assert found == png()


@pytest.mark.parametrize("to", ["http://inner.example/x", "//inner.example/x", "http://inner:80/", "https://inner/"])
def test_a_redirect_is_judged_like_the_first_address(to: str) -> None:
    found, web = at_the_web(lambda _: onward(to), "http://pictures.example:PORT/")
    assert isinstance(found, ApiError)
    assert "public internet" in str(found)
    assert len(web.asked) == 1


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://x/", "http://user:word@x.example/", "http://[", "data:,x"])
def test_a_redirect_to_what_is_no_address_is_refused(to: str) -> None:
    found, web = at_the_web(lambda _: onward(to), "http://pictures.example:PORT/")
    assert isinstance(found, ApiError)
    assert len(web.asked) == 1


def test_redirects_are_followed_three_times() -> None:
    def reply(last: int, path: str) -> bytes:
        at = int(path[1:])
        return answer(png()) if at == last else onward(f"/{at + 1}")

    found, _ = at_the_web(functools.partial(reply, 3), "http://pictures.example:PORT/0")
    assert found == png()
    found, web = at_the_web(functools.partial(reply, 4), "http://pictures.example:PORT/0")
    assert isinstance(found, ApiError)
    assert len(web.asked) == 4


def test_one_address_in_a_private_network_spoils_them_all() -> None:
    async def mixed(host: str, port: int) -> list[Address]:
        return [HERE, ipaddress.ip_address("10.0.0.1")]

    async def run() -> None:
        async with opened(lambda _: answer(png())) as web:
            with pytest.raises(ApiError, match="public internet"):
                await fetch_image(f"http://x.example:{web.port}/", replace(web.policy(), looks_up=mixed))
            assert web.asked == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"x" * 2000),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n" * 2,
        answer(b"<html>", "200 OK"),
        answer(png(), "404 Not Found"),
        answer(zlib.compress(png()), "200 OK", "Content-Encoding: deflate\r\n"),
        b"not http at all\r\n\r\n",
        b"",
    ],
)
def test_what_a_server_may_do_wrong(reply: bytes) -> None:
    found, _ = at_the_web(lambda _: reply, "http://pictures.example:PORT/", most_bytes=1000)
    assert isinstance(found, ApiError)
    assert found.status == 400


def test_a_server_that_takes_its_time_is_left() -> None:
    began = time.monotonic()
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + png()[:20]
    found, _ = at_the_web(lambda _: half, "http://pictures.example:PORT/slow", limit_seconds=0.3)
    assert isinstance(found, ApiError)
    assert "within" in str(found)
    assert time.monotonic() - began < 10


def test_a_name_that_leads_nowhere_is_told() -> None:
    with pytest.raises(ApiError, match="cannot be resolved"):
        asyncio.run(resolve("no-such-host.invalid", 80))
    with pytest.raises(ApiError):
        asyncio.run(resolve("x" * 70 + ".example", 80))

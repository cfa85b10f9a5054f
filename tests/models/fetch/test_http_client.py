"""The client against servers that drip, damage and lead elsewhere, and environments that are set up wrongly."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from standin_web import Fault, WebStandIn

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.http_client import (
    AccessDenied,
    DownloadSource,
    PlainHttp,
    RetryPolicy,
    fetch_small,
    is_loopback,
    redacted_url,
)

QUICK = RetryPolicy(attempts=2, first_wait_seconds=0.01, longest_wait_seconds=0.02, silence_seconds=0.2)


@pytest.fixture
def web() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


def fetch(url: str, retry: RetryPolicy = QUICK, **source: object) -> bytes:
    return asyncio.run(fetch_small(DownloadSource(url=url, **source), most_bytes=1000, retry=retry))  # type: ignore[arg-type]


@contextmanager
def answering(answer: Callable[[socket.socket], None], wrap: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose answer is written by hand, one connection at a time; gives its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with plain, suppress(OSError):
                    connection = wrap.wrap_socket(plain, server_side=True) if wrap else plain
                    connection.recv(4096)
                    answer(connection)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def dripping(piece: bytes, count: int = 100) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for _ in range(count):
            connection.sendall(piece)
            time.sleep(0.05)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "words"), [(b"HTTP/1.1 100 Continue\r\n\r\n", "no data came in time"), (b"X", "no data came in time")]
)
def test_an_answer_that_never_begins_is_not_waited_for(piece: bytes, words: str) -> None:
    with answering(dripping(piece, 400)) as host, pytest.raises(DownloadError, match=f"2 times.*{words}"):
        fetch(f"http://{host}/m", RetryPolicy(attempts=2, first_wait_seconds=0.01, silence_seconds=0.3))


def test_a_small_file_that_trickles_is_not_waited_for() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        dripping(b"x", 400)(connection)

    with (
        answering(answer) as host,
        pytest.raises(DownloadError, match=r"the data comes too slowly|no data came in time"),
    ):
        fetch(f"http://{host}/m")


def test_a_small_file_that_never_ends(web: WebStandIn) -> None:
    url = web.put("/m", bytes(2000), says_length=False)
    with pytest.raises(ModelError, match="/m is longer than 1000 B; check its name"):
        fetch(url)


def test_bytes_that_were_damaged_on_the_way_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bad memory and bad network cards do it; every layer but TLS lets it pass."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=trilithon", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "c.pem")
    subprocess.run([openssl, *words, *names], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    spoilt: list[bool] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        if not spoilt:
            spoilt.append(True)
            os.write(connection.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody encrypted
            time.sleep(0.1)
        else:
            connection.sendall(b"def")

    with answering(answer, context) as host:
        assert fetch(f"https://{host}/m", RetryPolicy(attempts=2, first_wait_seconds=0.01)) == b"abcdef"
    assert spoilt


@pytest.mark.parametrize("text", ["Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "-1", "soon", "\u0663", ""])
def test_a_wait_that_nobody_understands_is_ones_own(web: WebStandIn, text: str) -> None:
    url = web.put("/m", b"yes")
    headers = {"Retry-After": text.encode().decode("latin-1")}
    web.fault = lambda asked: Fault(status=503, headers=headers) if asked.number == 1 else None
    assert fetch(url) == b"yes"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "HTTPS_PROXY",
            "socks5://127.0.0.1:1",
            r"a SOCKS proxy needs another package; run: \S+ -m pip install 'httpx\[socks\]'",
        ),
        ("HTTPS_PROXY", "ftp://me:word@127.0.0.1:1", "the proxy is not valid: .*; check HTTPS_PROXY"),
        ("ALL_PROXY", "http://[::1", "the proxy is not valid: .*; check HTTPS_PROXY, ALL_PROXY and NO_PROXY"),
        (
            "SSL_CERT_FILE",
            "/nowhere.pem",
            "the trusted certificates cannot be read: No such file.*; check SSL_CERT_FILE",
        ),
    ],
)
def test_an_environment_that_is_set_up_wrongly(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=words) as caught:
        fetch("https://127.0.0.1:1/m")
    assert "word" not in str(caught.value)


def test_a_server_without_tls_says_so_at_once(web: WebStandIn) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with answering(answer) as host:
        for place in (host, web.host):
            with pytest.raises(PlainHttp, match=r"^127.0.0.1 speaks plain http, not https; add --insecure if nobody"):
                fetch(f"https://{place}/m", RetryPolicy(attempts=8, first_wait_seconds=60))


def test_a_redirect_to_plain_http_elsewhere_has_to_be_wanted(web: WebStandIn) -> None:
    web.fault = lambda _: Fault(status=302, headers={"Location": "http://host.invalid/m"})
    with pytest.raises(DownloadError, match="redirects to plain http, which is not followed; allow it with --insecure"):
        fetch(f"{web.url}/m")
    with pytest.raises(DownloadError, match="no connection"):
        fetch(f"{web.url}/m", insecure=True)


def test_a_password_in_an_address_is_told_to_its_host_alone(web: WebStandIn) -> None:
    with WebStandIn() as storage:
        target = storage.put("/m", b"yes")
        web.fault = lambda _: Fault(status=302, headers={"Location": target})
        assert fetch(f"http://me:word@{web.host}/m") == b"yes"
        assert [asked.headers.get("authorization") for asked in web.asked] == ["Basic bWU6d29yZA=="]
        assert [asked.headers.get("authorization") for asked in storage.asked] == [None]
    web.fault = lambda _: Fault(status=401)
    with pytest.raises(AccessDenied, match=r"requires a login; .*https://NAME:PASSWORD@HOST/FILE") as caught:
        fetch(f"http://me:word@{web.host}/m")
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["http://[::1", "//", "http://", "https://h:99999999/", "\\\\host\\m", "http://a b/"]
)
def test_redirects_to_no_address(web: WebStandIn, location: str) -> None:
    web.fault = lambda _: Fault(status=302, headers={"Location": location})
    with pytest.raises((DownloadError, ModelError)) as caught:
        fetch(f"{web.url}/m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1:80", "localhost", "LOCALHOST:8080", "a.localhost", "[::1]:9"])
def test_this_machine(host: str) -> None:
    assert is_loopback(f"http://{host}/x")


@pytest.mark.parametrize(
    "host", ["127.evil.org", "localhost.evil.org", "127.0.0.1.evil.org", "localhostess", "10.0.0.1", "127.1@evil.org"]
)
def test_machines_whose_names_begin_like_this_one(host: str) -> None:
    assert not is_loopback(f"http://{host}/x")
    with pytest.raises(ModelError, match="plain http is not protected against changes"):
        DownloadSource(url=f"http://{host}/x")


@pytest.mark.parametrize("url", ["http://[::1", "https://ex\u2100mple.org/m.gguf"])
def test_addresses_that_python_refuses(url: str) -> None:
    for ask in (redacted_url, is_loopback, lambda text: DownloadSource(url=text)):
        with pytest.raises(ModelError, match=r"is not a URL of a file: .*; write https://HOST/FILE"):
            ask(url)


def test_denied_is_told_by_its_kind(web: WebStandIn) -> None:
    with pytest.raises(AccessDenied, match="has no such file; check the name"):
        fetch(f"{web.url}/m")

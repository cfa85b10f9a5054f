"""Which hosts a pull over the API reaches: by address, after redirects, and when the name's address changes."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from standin_web import Fault, WebStandIn

from trilithon.errors import DownloadError, UserError
from trilithon.models.fetch import checked_transport, public_hosts
from trilithon.models.fetch.http_client import DownloadSource, RetryPolicy, fetch_small
from trilithon.models.fetch.public_hosts import Address, PublicHosts, is_public

QUICK = RetryPolicy(attempts=2, first_wait_seconds=0.01, longest_wait_seconds=0.02, silence_seconds=5)
NOT_PUBLIC = "is not a public host, and pulls over the API reach no others; its owner can pull it with trilithon pull"


@pytest.fixture
def web() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        server.put("/m", b"secret")
        yield server


def fetch(url: str, *allowed: str) -> bytes:
    source = DownloadSource(url=url, insecure=True, hosts=PublicHosts(frozenset(allowed)))
    return asyncio.run(fetch_small(source, most_bytes=1000, retry=QUICK))


def named(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> list[str]:
    """A resolver with these names ("_" for "."); each list is used up, its last entry stays. Returns who asked."""
    asked: list[str] = []

    async def resolved(host: str, port: int) -> list[Address]:
        asked.append(host)
        left = addresses[host.replace(".", "_")]
        return list(map(ip_address, (left.pop(0) if len(left) > 1 else left[0]).split()))

    monkeypatch.setattr(checked_transport, "resolved", resolved)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:c0a8:101::1", "64:ff9b::a00:1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LocalHost", "127.1", "2130706433", "0x7f000001", "0", "0.0.0.0", "[::1]"]
)
def test_this_machine_is_not_reached_however_it_is_written(web: WebStandIn, host: str) -> None:
    port = web.host.rpartition(":")[2]
    with pytest.raises(UserError, match=NOT_PUBLIC):
        fetch(f"http://{host}:{port}/m")
    for other in ("localhost.", "0177.0.0.1", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1"):  # not an address everywhere
        with pytest.raises((UserError, DownloadError)):
            fetch(f"http://{other}:{port}/m")
    assert web.asked == []


def test_open_and_closed_ports_are_told_in_the_same_words(web: WebStandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    messages = set()
    for port in (web.host.rpartition(":")[2], closed):
        for scheme in ("http", "https"):
            with pytest.raises(UserError) as caught:
                fetch(f"{scheme}://127.0.0.1:{port}/m")
            messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_host_that_the_owner_allows(web: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(f"{web.url}/m", "127.0.0.1") == b"secret"
    named(monkeypatch, models_lan=["127.0.0.1"])
    assert fetch(f"http://Models.LAN:{web.host.rpartition(':')[2]}/m", "models.lan") == b"secret"
    assert web.asked[-1].headers["host"].lower().startswith("models.lan:")


def test_a_redirect_is_checked_like_the_first_request(web: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, models_lan=["127.0.0.1"], evil_example=["169.254.169.254"], **{"10_0_0_1": ["10.0.0.1"]})
    for target in ("http://evil.example/latest", "http://10.0.0.1/", "https://evil.example:9/"):
        headers = {"Location": target}
        web.fault = lambda _, headers=headers: Fault(status=302, headers=headers)  # type: ignore[misc]
        with pytest.raises(UserError, match=NOT_PUBLIC):
            fetch(f"http://models.lan:{web.host.rpartition(':')[2]}/m", "models.lan")


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, evil_example=["93.184.216.34 10.0.0.1"])
    with pytest.raises(UserError, match=NOT_PUBLIC):
        fetch("https://evil.example/m")


def test_the_connection_is_made_to_the_address_that_was_checked(
    web: WebStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that has another address a moment later; here the checks let this machine pass as a public one."""
    asked = named(monkeypatch, rebinding_example=["127.0.0.1", "10.0.0.1"])
    monkeypatch.setattr(public_hosts, "is_public", lambda address: str(address) == "127.0.0.1")
    port = web.host.rpartition(":")[2]
    assert fetch(f"http://rebinding.example:{port}/m") == b"secret"
    assert asked == ["rebinding.example"]
    with pytest.raises(UserError, match=NOT_PUBLIC):
        fetch(f"http://rebinding.example:{port}/m")


def test_an_address_that_does_not_answer_is_followed_by_the_next(
    web: WebStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, two_example=["127.0.0.2 127.0.0.1"], **{"127_0_0_2": ["127.0.0.2"]})
    assert fetch(f"http://two.example:{web.host.rpartition(':')[2]}/m", "two.example") == b"secret"
    with pytest.raises(DownloadError, match="no connection"):
        fetch("http://127.0.0.2:1/m", "127.0.0.2")


def test_the_certificate_is_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=t", "-addext", "subjectAltName=DNS:good.example", "-keyout", "key.pem", "-out", "c.pem")
    subprocess.run([openssl, *words, *names], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "key.pem")
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
    named(monkeypatch, good_example=["127.0.0.1"], other_example=["127.0.0.1"])
    with WebStandIn() as web:
        web._server.socket = context.wrap_socket(web._server.socket, server_side=True)
        web.put("/m", b"secret")
        port = web.host.rpartition(":")[2]
        assert fetch(f"https://good.example:{port}/m", "good.example") == b"secret"
        with pytest.raises(DownloadError, match="its certificate is not trusted"):
            fetch(f"https://other.example:{port}/m", "other.example")
    assert asked == ["good.example", "other.example"]


def test_what_goes_through_a_proxy_is_checked_by_name(web: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy connects, and may be the only one that resolves names."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "direct.example")
    named(monkeypatch, inner_example=["10.0.0.1"], outer_example=["93.184.216.34"], direct_example=["10.0.0.1"])
    assert fetch("http://outer.example/m") == b"secret"
    assert web.asked[0].headers["host"] == "outer.example"
    for host in ("inner.example", "direct.example"):
        with pytest.raises(UserError, match=NOT_PUBLIC):
            fetch(f"http://{host}/m")
    assert len(web.asked) == 1


def test_nothing_is_restricted_without_hosts(web: WebStandIn) -> None:
    source = DownloadSource(url=f"{web.url}/m")
    assert asyncio.run(fetch_small(source, most_bytes=1000, retry=QUICK)) == b"secret"

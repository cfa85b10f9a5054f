"""Host headers that are ours, and those of strangers' pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.serve.access.hosts import HostNames, host_of, is_loopback, names_address

OURS = HostNames(own="rock5")


@pytest.mark.parametrize(
    "header",
    [
        "localhost",
        "localhost:11435",
        "LOCALHOST.",
        "127.0.0.1:11435",
        "127.9.8.7",
        "[::1]:11435",
        "[::1]",
        "[::ffff:127.0.0.1]:80",
        "rock5",
        "Rock5:8080",
        "rock5.local",
        "rock5.lan:11435",
        "rock5.home",
        "rock5.home.arpa",
        "rock5.internal",
        "rock5.fritz.box",
        "host.containers.internal",
        "ollama.localhost:1",
        "host.docker.internal:11434",
        "192.168.1.20:11435",
        "10.0.0.1",
        "172.16.3.4",
        "169.254.7.7",
        "100.64.1.2",
        "[fe80::1]:11435",
        "[fd00::7]",
        "0.0.0.0:11435",
    ],
)
def test_these_mean_this_machine(header: str) -> None:
    assert header in OURS


@pytest.mark.parametrize(
    "header",
    [
        "evil.example",
        "localhost.evil.example",
        "rock5.evil.example",
        "127.0.0.1.evil.example",
        "evil-local",
        "local",
        ".local",
        "8.8.8.8",
        "[2606:4700::1111]",
        "localhost:80:80",
        "localhost:http",
        "localhost:123456",
        "[::1",
        "::1",
        "[localhost]",
        "user@localhost",
        "localhost/..",
        "local host",
        "",
        "127.1",
        "0x7f000001",
        "2130706433.",
        "evil.example#.local",
        "evil.example\\.local",
        "x" * 260 + ".local",
        "evil.local",
        "evil.internal",
        "evil.rock5.local",
        "rock55.lan",
        "rock5.box",
        "lan",
        "evil.docker.internal",
    ],
)
def test_these_do_not(header: str) -> None:
    assert header not in OURS


def test_a_long_name_of_this_machine_has_a_short_one() -> None:
    long = HostNames(own="Rock5.example.org")
    assert all(name in long for name in ("rock5.example.org", "rock5", "rock5.local"))
    assert "evil.example.org" not in long
    assert "localhost.lan" not in HostNames(own="localhost")


def test_names_can_be_added() -> None:
    more = HostNames(["Rock5.LAN", "*.home.arpa", "203.0.113.9"], own="rock5")
    assert "rock5.lan:11435" in more
    assert "npu.home.arpa" in more
    assert "home.arpa" not in more
    assert "203.0.113.9" in more
    assert "evil.lan" not in more
    assert "anything.example" in HostNames(["*"])
    assert "8.8.8.8" in HostNames(["*"])
    assert "no name" not in HostNames(["*"])


@pytest.mark.parametrize("name", ["http://rock5", "rock5:80", "", "a b", "*.", "*x", "a/b"])
def test_what_is_no_name_is_told(name: str) -> None:
    with pytest.raises(UserError, match="is not a host name"):
        HostNames([name])


@given(st.text(max_size=80))
def test_any_text_has_an_answer(text: str) -> None:
    host = host_of(text)
    assert host == host.lower()
    assert " " not in host
    assert isinstance(text in OURS, bool)


@given(st.from_regex(r"[a-z]{1,12}(\.[a-z]{1,12}){0,3}\.(com|org|net|lan|box)", fullmatch=True))
def test_no_name_that_can_be_registered_is_ours(name: str) -> None:
    assert name not in OURS


@given(st.ip_addresses())
def test_an_address_is_ours_when_it_is_not_global(address: object) -> None:
    text = f"[{address}]" if ":" in str(address) else str(address)
    if text in OURS:
        assert not address.is_global or getattr(address, "ipv4_mapped", None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]", "/run/trilithon.sock", "@trilithon"]
)
def test_loopback_is_for_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "192.168.1.2", "rock5", "localhost.evil.example", "::ffff:1.2.3.4"]
)
def test_all_else_is_for_others_too(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "address", "same"),
    [
        ("8.8.8.8:11435", "8.8.8.8", True),
        ("8.8.8.8", "::ffff:8.8.8.8", True),
        ("[2606:4700::1]:80", "2606:4700::1", True),
        ("8.8.8.8", "8.8.4.4", False),
        ("evil.example", "/run/trilithon.sock", False),
        ("", "", False),
        ("!", "", False),
    ],
)
def test_the_address_that_was_connected_to_is_ours(header: str, address: str, same: bool) -> None:
    assert names_address(header, address) is same

"""Origins of web pages: those that were given, and all others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.serve.access.origins import Origins, answer_headers, preflight_headers

BOARD = "rock5.local:11435"


def test_without_any_given_a_page_may_call_only_where_it_came_from() -> None:
    none = Origins()
    assert none.allows("http://rock5.local:11435", BOARD)
    assert none.allows("https://rock5.local:11435", BOARD)  # behind something that speaks TLS
    assert none.allows("HTTP://ROCK5.local:11435", BOARD)
    for other in ("http://rock5.local", "http://rock5.local:8080", "null", "", "file://", "app://rock5.local:11435"):
        assert not none.allows(other, BOARD)
    assert not none.allows("http://", "")


@pytest.mark.parametrize(
    ("given_", "origin", "allowed"),
    [
        ("https://chat.example.org", "https://chat.example.org", True),
        ("https://chat.example.org", "http://chat.example.org", False),
        ("https://chat.example.org", "https://chat.example.org.evil.example", False),
        ("https://chat.example.org", "https://chatXexample.org", False),
        ("https://*.example.org", "https://a.example.org", True),
        ("https://*.example.org", "https://a.b.example.org", True),
        ("https://*.example.org", "https://example.org", False),
        ("https://*.example.org", "https://evil.example/.example.org", False),
        ("http://localhost:*", "http://localhost:3000", True),
        ("http://localhost:*", "http://localhost:3000.evil.example", False),
        ("http://localhost:*", "http://localhost.evil.example:3000", False),
        ("http://localhost:*", "http://localhost", False),
        ("vscode-webview://*", "vscode-webview://1b2c3d", True),
        ("vscode-webview://*", "http://evil.example", False),
        ("app://obsidian.md", "app://obsidian.md", True),
        ("file://", "file://", True),
        ("null", "null", True),
        ("*", "https://anything.example", True),
    ],
)
def test_what_a_given_origin_lets_in(given_: str, origin: str, allowed: bool) -> None:
    assert Origins([given_]).allows(origin, BOARD) is allowed


@pytest.mark.parametrize(
    "given_",
    ["example.org", "https://example.org/", "https://a*b.example", "https://*.*", "https://u@h", "", "https://a b"],
)
def test_what_is_no_origin_is_told(given_: str) -> None:
    with pytest.raises(UserError, match="is not an origin"):
        Origins([given_])


@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_has_an_answer(origin: str, host: str) -> None:
    allowed = Origins(["https://chat.example.org"]).allows(origin, host)
    own = origin.lower() in (f"http://{host.strip().lower()}", f"https://{host.strip().lower()}")
    assert allowed == (origin.lower() == "https://chat.example.org" or (own and host.strip() != ""))


@given(st.text(max_size=40), st.text(max_size=60))
def test_what_a_page_asks_for_cannot_make_a_header_of_its_own(method: str, names: str) -> None:
    for _, value in preflight_headers("https://a.example", method, names, private_network=True):
        assert b"\r" not in value
        assert b"\n" not in value


def test_a_preflight_grants_what_was_asked() -> None:
    granted = dict(preflight_headers("app://x", "DELETE", "authorization, x-stainless-os", private_network=True))
    assert granted[b"access-control-allow-origin"] == b"app://x"
    assert granted[b"access-control-allow-methods"] == b"DELETE"
    assert granted[b"access-control-allow-headers"] == b"authorization, x-stainless-os"
    assert granted[b"access-control-allow-private-network"] == b"true"
    assert b"access-control-allow-credentials" not in granted
    assert dict(answer_headers("app://x"))[b"vary"] == b"Origin"

"""Reverse proxies: whose word counts, and the path that they publish the server at."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from trilithon.errors import UserError
from trilithon.serve.access.proxies import BehindProxies, checked_proxies, checked_root_path


def seen(
    *headers: tuple[str, str],
    client: tuple[str, int] | None,
    trusted: tuple[str, ...] = (),
    root: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The scope that reaches the application."""
    reached: dict[str, Any] = {}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        reached.update(scope)

    async def unused(*_: Any) -> Any:
        raise AssertionError

    scope = {"type": "http", "scheme": "http", "path": "/api/chat", "raw_path": b"/api/chat", "client": client} | more
    scope["headers"] = [(name.lower().encode(), text.encode()) for name, text in headers]
    asyncio.run(BehindProxies(application, trusted=trusted, root_path=root)(scope, unused, unused))
    return reached


@pytest.mark.parametrize(
    ("peer", "trusted", "claims", "client"),
    [
        ("10.0.0.1", (), ["1.2.3.4"], "10.0.0.1"),
        ("10.0.0.1", ("10.0.0.1",), ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.2", ("10.0.0.1",), ["1.2.3.4"], "10.0.0.2"),
        ("10.0.0.2", ("10.0.0.0/8",), ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.2", ("10.0.0.9/8",), ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ("10.0.0.1",), ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the first is what the client claims
        ("10.0.0.1", ("10.0.0.1", "10.0.0.2"), ["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ("10.0.0.1",), [], "10.0.0.1"),
        ("::1", ("::1",), ["2001:db8::7"], "2001:db8::7"),
        ("", ("unix",), ["1.2.3.4"], "1.2.3.4"),
    ],
)
def test_whose_word_counts(peer: str, trusted: tuple[str, ...], claims: list[str], client: str) -> None:
    scope = seen(*(("X-Forwarded-For", claim) for claim in claims), client=(peer, 5) if peer else None, trusted=trusted)
    assert scope["client"][0] == client


def test_a_unix_socket_that_is_not_trusted_has_no_client() -> None:
    assert seen(("X-Forwarded-For", "1.2.3.4"), client=None, trusted=("127.0.0.1",))["client"] is None


@pytest.mark.parametrize(("trusted", "scheme"), [((), "http"), (("10.0.0.1",), "https")])
def test_the_scheme_too(trusted: tuple[str, ...], scheme: str) -> None:
    assert seen(("X-Forwarded-Proto", "https"), client=("10.0.0.1", 5), trusted=trusted)["scheme"] == scheme


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/ai/api/chat", "/api/chat"),
        ("/api/chat", "/api/chat"),
        ("/ai", "/"),
        ("/ai/", "/"),
        ("/ai/ai", "/"),
        ("/ai/ai/api/delete", "/api/delete"),
        ("/aixyz", "/aixyz"),
        ("/", "/"),
    ],
)
def test_a_path_that_the_proxy_passes_on_or_strips(path: str, inside: str) -> None:
    scope = seen(client=None, root="/ai/", path=path, raw_path=path.encode())
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == (inside, inside.encode(), "/ai")


def test_a_prefix_of_the_clients_own_does_not_count() -> None:
    assert seen(("X-Forwarded-Prefix", "/evil"), ("Accept", "*/*"), client=None)["headers"] == [(b"accept", b"*/*")]


@pytest.mark.parametrize("text", ["ai", "/a b", "/a?b", "/../x", "/.", "//x", "/api", "/v1/x", "/models", "/é"])
def test_a_root_path_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match="--root-path"):
        checked_root_path(text)


@pytest.mark.parametrize("text", ["nginx", "10.0.0.0/99", "*", "", "1.2.3"])
def test_a_proxy_that_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="--trusted-proxy"):
        checked_proxies((text,))

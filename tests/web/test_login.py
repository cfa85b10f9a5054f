"""Who gets to the pages: nobody without a key where the API asks for one, and nobody for longer than the key lives."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from trilithon.serve.access.keys import remove_key

Site = Callable[..., Any]
Pages = Callable[..., Page]
HTML = {"accept": "text/html"}
# The browser says so itself of each refusal.
REFUSED = r"401|403|429|WebSocket|websocket|Failed to load resource"


SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@contextlib.contextmanager
def socket_of(opened: Any, key: str) -> Iterator[ClientConnection]:
    """That of a browser which showed the key, once engine.io has opened it."""
    with httpx.Client(base_url=opened.url) as http:
        http.post("/login", data={"key": key})
        cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
    with connect(opened.url.replace("http", "ws") + SOCKET, additional_headers={"Cookie": cookie}) as found:
        assert found.recv(timeout=20).startswith("0{")
        yield found


def log_in(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Log in").click()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/board", "/models", "/results", "/atlas"])
def test_a_page_is_shown_after_the_key_and_not_before(site: Site, browser_page: Pages, path: str) -> None:
    opened = site(keys=("ann",))
    page = browser_page(expected=REFUSED)
    page.goto(opened.url + path)
    expect(page.get_by_role("heading", name="Key required")).to_be_visible()
    log_in(page, "trl-wrong-wrong-wrong-wrong")
    expect(page.get_by_role("alert")).to_contain_text("Unknown key")
    log_in(page, opened.keys["ann"])
    expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()
    assert page.url == opened.url + path
    (cookie,) = [each for each in page.context.cookies() if each["name"] == "trilithon-session"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    assert opened.keys["ann"] not in cookie["value"]


@pytest.mark.slow
def test_logging_out_and_a_revoked_key_end_it(site: Site, browser_page: Pages, configuration: Any) -> None:
    opened = site(keys=("ann", "bob"))
    page = browser_page(expected=REFUSED)
    page.goto(opened.url + "/models")
    log_in(page, opened.keys["ann"])
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Key required")).to_be_visible()
    log_in(page, opened.keys["bob"])
    expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()
    remove_key(configuration, "bob")
    page.goto(opened.url + "/models")
    expect(page.get_by_role("heading", name="Key required")).to_be_visible()


@pytest.mark.slow
def test_a_page_left_open_goes_to_the_login_when_its_key_does(
    site: Site, browser_page: Pages, configuration: Any
) -> None:
    opened = site(keys=("ann", "bob"))
    page = browser_page(expected=REFUSED)
    page.goto(opened.url + "/models")
    log_in(page, opened.keys["ann"])
    expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()
    remove_key(configuration, "ann")
    expect(page.get_by_role("heading", name="Key required")).to_be_visible(timeout=60_000)


def test_nothing_of_the_pages_is_open_and_the_cookie_opens_no_api(site: Site) -> None:
    opened = site(keys=("ann",))
    with httpx.Client(base_url=opened.url) as http:
        for path in ("/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/results/export?form=csv", "/api/tags"):
            assert http.get(path).status_code == 401, path
        assert http.get("/", headers=HTML).headers["location"] == "/login?next=/"
        answer = http.post("/login", data={"key": opened.keys["ann"], "next": "https://example.com/"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert http.get("/", headers=HTML).status_code == 200
        assert http.get("/api/tags").status_code == 401
        assert http.post("/api/show", json={"model": "x"}).status_code == 401


def test_an_open_connection_ends_with_its_key(site: Site, configuration: Any) -> None:
    opened = site(keys=("ann", "bob"))
    with socket_of(opened, opened.keys["ann"]) as ann, socket_of(opened, opened.keys["bob"]) as bob:
        remove_key(configuration, "ann")
        for each in (ann, bob):
            each.send("40")  # socket.io's request for its namespace
        with pytest.raises(ConnectionClosed):
            ann.recv(timeout=20)
        assert bob.recv(timeout=20).startswith("40")


def test_without_a_session_no_connection_is_opened(site: Site) -> None:
    opened = site(keys=("ann",))
    with pytest.raises(InvalidStatus):
        connect(opened.url.replace("http", "ws") + SOCKET)


@pytest.mark.parametrize("announced", [True, False])
def test_who_showed_no_key_gets_no_memory_for_a_long_form(site: Site, announced: bool) -> None:
    opened = site(keys=("ann",))
    content = b"key=" + b"x" * (1 << 20)
    with httpx.Client(base_url=opened.url) as http:
        answer = http.post("/login", content=content if announced else iter([content[:500_000], content[500_000:]]))
    assert answer.status_code == 401


def test_guessing_is_slowed_down(site: Site) -> None:
    opened = site(keys=("ann",))
    with httpx.Client(base_url=opened.url) as http:
        found = {http.post("/login", data={"key": f"trl-{number}"}).status_code for number in range(30)}
    assert found == {401, 429}


def test_clients_of_the_api_find_at_the_root_what_they_look_for(site: Site) -> None:
    opened = site()
    with httpx.Client(base_url=opened.url) as http:
        assert "running" in http.get("/").text
        assert http.get("/", headers=HTML).headers["content-security-policy"].startswith("default-src 'self'")
        assert http.get("/login").status_code == 200


def test_a_page_of_anothers_cannot_speak_with_ours(site: Site) -> None:
    opened = site()
    with httpx.Client(base_url=opened.url) as http:
        path = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
        assert http.get(path, headers={"origin": "https://example.com"}).status_code == 403

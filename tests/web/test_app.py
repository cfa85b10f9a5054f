"""The pages on a live server: beside the API, at the same paths."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from trilithon.serve.http.protocol import PatientProtocol
from trilithon.web.app import PAGES


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PAGES:
        monkeypatch.setitem(PAGES, name, "plain_page:build")


def test_a_page_speaks_with_the_server(
    site: Callable, browser_page: Callable, screenshot: Callable, tiny: Path
) -> None:
    opened = site(tiny)
    page = browser_page()
    page.goto(opened.url + "/models")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("asked", exact=True)).to_be_visible()
    screenshot(page, "frame-light")
    page = browser_page(width=360, height=640, dark=True, language="ru-RU")
    page.goto(opened.url + "/board")
    expect(page.get_by_role("link", name="Модели")).to_be_visible()
    screenshot(page, "frame-dark")


@pytest.mark.slow
def test_a_page_stays_connected_for_longer_than_a_header_is_waited_for(
    site: Callable, browser_page: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.5)
    page = browser_page()
    closed: list[str] = []
    page.on("websocket", lambda opened: opened.on("close", lambda socket: closed.append(socket.url)))
    page.goto(site().url)
    page.wait_for_function("window.did_handshake === true")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("asked", exact=True)).to_be_visible()
    assert closed == []


def test_what_is_no_page_is_the_apis(site: Callable, tiny: Path) -> None:
    opened = site(tiny)
    with httpx.Client(base_url=opened.url) as http:
        assert http.get("/").text == "Ollama is running"
        assert http.head("/").status_code == 200
        for path in ("/v1/models", "/models"):
            assert http.get(path).json()["data"][0]["id"] == opened.model
        for path in ("/", "/models"):
            page = http.get(path, headers={"accept": "text/html,*/*;q=0.8"})
            assert page.headers["content-type"].startswith("text/html"), path
            assert "script-src 'self'" in page.headers["content-security-policy"], path
        for path, wanted in (("/api/nothing", "text/html"), ("/nothing", "text/html"), ("/results", "*/*")):
            missing = http.get(path, headers={"accept": wanted})
            assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json"), path

"""The pages on a live server: beside the API, at the same paths."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

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

"""What stands around every page: the way to the others, and choices that last."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from trilithon.web.app import PAGES

Site = Callable[..., Any]
Pages = Callable[..., Page]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PAGES:
        monkeypatch.setitem(PAGES, name, "plain_page:build")


@pytest.mark.slow
def test_the_ways_lead_to_the_pages(site: Site, browser_page: Pages) -> None:
    page = browser_page()
    page.goto(site().url)
    ways = page.get_by_role("navigation", name="Pages", exact=True)
    for name in ("Board", "Models", "Results", "Chat"):
        ways.get_by_role("link", name=name).click()
        expect(ways.get_by_role("link", name=name)).to_have_attribute("aria-current", "page")
        expect(page).to_have_title(f"{name} - Trilithon")


@pytest.mark.slow
def test_light_or_dark_and_the_language_are_kept(site: Site, browser_page: Pages) -> None:
    page = browser_page()
    page.goto(site().url)
    page.get_by_role("button", name="Appearance").click()
    page.get_by_role("menuitemradio", name="Dark").click()
    expect(page.locator("body.body--dark")).to_have_count(1)
    page.get_by_role("button", name="Appearance").click()
    expect(page.get_by_role("menuitemradio", name="Dark")).to_be_checked()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Language").click()
    page.get_by_role("menuitemradio", name="Русский").click()
    expect(page.locator("html[lang=ru]")).to_have_count(1)
    page.get_by_role("link", name="Плата").click()
    expect(page.get_by_role("link", name="Плата")).to_have_attribute("aria-current", "page")
    expect(page.locator("body.body--dark")).to_have_count(1)


def test_the_keyboard_skips_to_the_content(site: Site, browser_page: Pages) -> None:
    page = browser_page()
    page.goto(site().url)
    page.wait_for_function("window.did_handshake === true")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask")).to_be_focused()


def test_words_are_readable_in_the_dark(site: Site, browser_page: Pages) -> None:
    page = browser_page(dark=True)
    page.goto(site().url)
    page.wait_for_function("window.did_handshake === true")
    expect(page.locator(".page")).to_have_css("color", "rgb(230, 234, 240)")

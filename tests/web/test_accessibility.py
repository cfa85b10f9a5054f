"""Every page compared with axe-core's rules, light and dark, and in both languages nothing of another host's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

Site = Callable[..., Any]
Pages = Callable[..., Page]
SERIOUS = ("serious", "critical")


# Colours that are still changing have another contrast; what turns for ever is not waited for.
AT_REST = """document.getAnimations().every(animation =>
    animation.playState !== "running" || animation.effect.getComputedTiming().iterations === Infinity)"""


def faults(page: Page) -> list[str]:
    page.wait_for_function(AT_REST)
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {node['html'][:200]}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_no_page_has_a_serious_fault(site: Site, browser_page: Pages, tiny: Path, dark: bool) -> None:
    opened = site(tiny)
    for path, language in (
        ("/", "en-US"),
        ("/board", "ru-RU"),
        ("/models", "en-US"),
        ("/results", "ru-RU"),
        ("/atlas", "en-US"),
    ):
        page = browser_page(dark=dark, language=language)
        page.goto(opened.url + path, wait_until="networkidle")
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        if path == "/":
            question = page.get_by_label("Ask something")
            question.fill("hello")
            question.press("Enter")
            expect(page.locator(".message.assistant .figures")).to_contain_text("tokens/s")
            page.get_by_role("button", name="Settings").click()
            page.get_by_role("button", name="Compare two placements").click()
        assert faults(page) == [], path
        page.context.close()


def test_the_login_has_none(site: Site, browser_page: Pages) -> None:
    opened = site(keys=("ann",))
    for dark in (False, True):
        page = browser_page(dark=dark)
        page.goto(opened.url)
        assert faults(page) == []

"""The page of the atlas in a browser: an estimate, filters that the address keeps, and no English in Russian."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from russian import english_on

pytestmark = pytest.mark.slow


def test_a_buyer_gets_an_estimate_and_filters(
    site: Callable[..., Any], browser_page: Callable[..., Any], tiny: Path
) -> None:
    page = browser_page()
    url = site(tiny).url
    page.goto(f"{url}/atlas")
    page.get_by_label("Model, such as").fill("Qwen2.5-7B-Instruct")
    page.get_by_role("form", name="Estimate").get_by_label("Chip or machine").select_option("RK3588")
    page.get_by_label("Memory of the board").select_option("4 GiB")
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("table.estimates tbody tr")).to_have_count(4)
    expect(page.locator("table.estimates")).to_contain_text("does not fit")
    page.get_by_label("Model, such as").fill("no-such-model")
    page.get_by_role("button", name="Estimate").click()
    expect(page.get_by_role("alert").filter(has_text="nothing is known of")).to_be_visible()
    filters = page.get_by_role("form", name="Filters")
    filters.get_by_label("Model").select_option("qwen2-1.5b")
    filters.get_by_label("Chart of").select_option("prefill")
    expect(page.locator("ol.bars li").first).to_contain_text("RK3588")
    page.wait_for_url("**/atlas?model=qwen2-1.5b&figure=prefill")
    shown = page.locator("ol.bars").inner_text()
    page.reload()
    expect(page.locator("ol.bars")).to_have_text(shown, use_inner_text=True)
    russian = browser_page(language="ru-RU", width=400)
    russian.goto(f"{url}/atlas?chip=RK3588")
    russian.locator("form input").fill("qwen2.5-1.5b")
    russian.get_by_role("button", name="Оценить").click()
    expect(russian.locator("table.estimates tbody tr").first).to_be_visible()
    assert english_on(russian) == []
    assert russian.evaluate("document.documentElement.scrollWidth") <= 400

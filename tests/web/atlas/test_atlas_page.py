"""The page of the atlas in a browser: an estimate, filters that the address keeps, and no English in Russian."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow


def test_a_buyer_gets_an_estimate_and_filters(
    site: Callable[..., Any], browser_page: Callable[..., Any], tiny: Path
) -> None:
    page = browser_page()
    page.goto(f"{site(tiny).url}/atlas")
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

"""The page of models in a browser, against a live server: the list, pulls, and what is done with a model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from russian import english_on
from standin_hub import HubStandIn
from standin_web import Fault, WebStandIn

from trilithon.board.snapshot import read_board
from trilithon.models.store.model_store import ModelStore
from trilithon.results.fingerprints import fingerprint_of
from trilithon.results.plans import Plan, keep_plan, read_plan
from trilithon.settings import Configuration

Open = Callable[..., Any]

PLANNED = "scripted/cpu:prefill=50000,decode=5000"

expect.set_options(timeout=30_000)


def models_page(site: Any, page: Page) -> Page:
    page.goto(site.url + "/models")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    return page


def shot(screenshot: Open, page: Page, name: str) -> None:
    """From the top, where the header stays when a page is scrolled."""
    page.evaluate("scrollTo(0, 0)")
    screenshot(page, name)


def row_of(page: Page, name: str) -> Locator:
    return page.locator("li.model").filter(has=page.get_by_role("heading", name=name, exact=True))


@pytest.mark.slow
def test_a_model_is_pulled_with_progress_and_is_then_in_the_list(
    site: Open, browser_page: Open, screenshot: Open, hub: HubStandIn
) -> None:
    opened = site()
    page = models_page(opened, browser_page())
    expect(page.get_by_text("There are no models yet")).to_be_visible()
    shot(screenshot, page, "models-empty")
    page.get_by_label("Model name").fill("hf.co/ann/Little-GGUF:F16")
    page.get_by_role("button", name="Pull", exact=True).click()
    expect(page.get_by_text("Downloading Little-F16.gguf")).to_be_visible()
    expect(page.get_by_text(re.compile(r"[\d.]+ [KM]?i?B of [\d.]+ [KM]iB"))).to_be_visible()
    bar = page.get_by_role("progressbar", name="Downloaded part of hf.co/ann/Little-GGUF:F16")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"0\.\d+"))
    shot(screenshot, page, "models-pulling")
    page.goto("about:blank")  # it goes on
    models_page(opened, page)
    expect(page.get_by_text("hf.co/ann/Little-GGUF:F16 is ready")).to_be_visible()
    row = row_of(page, "hf.co/ann/Little-GGUF:F16")
    expect(row).to_contain_text("not loaded")
    expect(row).to_contain_text("Runs on scripted/cpu")
    page.get_by_role("button", name="Dismiss hf.co/ann/Little-GGUF:F16").click()
    expect(page.get_by_text("hf.co/ann/Little-GGUF:F16 is ready")).to_be_hidden()


@pytest.mark.slow
def test_a_pull_is_stopped_and_goes_on_where_it_was(
    site: Open, browser_page: Open, hub: HubStandIn, storage: WebStandIn, tiny: Path
) -> None:
    name, size = "hf.co/ann/Little-GGUF:F16", tiny.stat().st_size
    storage.fault = lambda asked: None if asked.is_look else Fault(pace=size / 60)
    page = models_page(site(), browser_page())
    page.get_by_label("Model name").fill(name)
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile(r" of .*iB/s"))).to_be_visible()
    page.get_by_role("button", name=f"Stop pulling {name}").click()
    expect(page.get_by_text("Stopped; the downloaded part is kept")).to_be_visible()
    came = storage.sent_bytes
    storage.fault = lambda _: None
    page.get_by_role("button", name=f"Resume pulling {name}").click()
    expect(page.get_by_text(f"{name} is ready")).to_be_visible()
    expect(page.locator(".pulls .card")).to_have_count(1)
    assert 0 < came < size
    assert storage.sent_bytes < came + size


@pytest.mark.slow
def test_what_goes_wrong_with_a_pull_is_one_line(
    site: Open, browser_page: Open, hub: HubStandIn, storage: WebStandIn
) -> None:
    page = models_page(site(), browser_page())
    start = page.get_by_role("button", name="Pull", exact=True)
    start.click()
    alert = page.locator(".pulls .problem")
    expect(alert).to_have_text("enter the name of a model, such as qwen2.5:0.5b")
    for name, words in (("https://127.0.0.1/m.gguf", "only named models can be pulled"), ("a b", "does not fit")):
        page.get_by_label("Model name").fill(name)
        start.click()
        expect(alert).to_contain_text(words)
    page.get_by_label("Model name").fill("hf.co/ann/Nothing")
    start.click()
    card = page.locator(".pulls .card")
    expect(card).to_contain_text("Failed")
    expect(card.locator(".amount")).to_contain_text("ann/Nothing")
    expect(alert).to_be_hidden()
    page.get_by_role("button", name="Dismiss hf.co/ann/Nothing").click()
    expect(card).to_have_count(0)


@pytest.mark.slow
def test_a_pull_of_the_api_is_shown_and_can_be_stopped(
    site: Open, browser_page: Open, hub: HubStandIn, storage: WebStandIn, tiny: Path
) -> None:
    storage.fault = lambda asked: None if asked.is_look else Fault(pace=tiny.stat().st_size / 60)
    opened = site()
    page = models_page(opened, browser_page())
    with opened.http as client, client.stream("POST", "/api/pull", json={"model": "hf.co/ann/Little-GGUF"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        page.get_by_role("button", name="Stop pulling hf.co/ann/Little-GGUF").click()
        assert "stopped; pull it again to resume" in list(lines)[-1]
    expect(page.get_by_text("Stopped; the downloaded part is kept")).to_be_visible()


@pytest.mark.slow
def test_a_model_is_loaded_pinned_and_unloaded(site: Open, browser_page: Open, keep: Open, screenshot: Open) -> None:
    one, two = keep("little:f16"), keep("other:f16")
    opened = site(placement="scripted/cpu:prefill=50000,decode=5000,load=0.3")
    page = models_page(opened, browser_page())
    row = row_of(page, one)
    page.get_by_role("button", name=f"Load {one}", exact=True).click()
    expect(row).to_contain_text("loaded")
    expect(row).to_contain_text("unloads in")
    expect(page.locator(".memory .legend")).to_contain_text(one)
    expect(page.locator(".memory")).to_contain_text(re.compile(r"[\d.]+ MiB of [\d.]+ GiB used"))
    page.get_by_role("button", name=re.compile(f"^Pin {one}:")).click()
    expect(row).to_contain_text("loaded, pinned")
    assert opened.service.pool.pinned == (one,)
    page.get_by_role("button", name=re.compile(f"^Pin {two}:")).click()  # loads it
    expect(row_of(page, two)).to_contain_text("loaded, pinned")
    shot(screenshot, page, "models-loaded")
    page.get_by_role("button", name=f"Unpin {one}").click()
    expect(row).not_to_contain_text("pinned")
    expect(row).to_contain_text("unloads in")
    for name in (one, two):
        page.get_by_role("button", name=f"Unload {name}").click()
        expect(row_of(page, name)).to_contain_text("not loaded")
    expect(page.get_by_text("No model is loaded.")).to_be_visible()
    assert opened.service.pool.loaded() == ()
    assert opened.service.pool.pinned == ()


@pytest.mark.slow
def test_what_the_api_loads_is_seen_without_asking(site: Open, browser_page: Open, tiny: Path) -> None:
    opened = site(tiny)
    page = models_page(opened, browser_page())
    row = row_of(page, opened.model)
    expect(row).to_contain_text("not loaded")
    expect(row).to_contain_text("managed by another program")
    expect(row.get_by_role("button", name=f"Remove {opened.model}")).to_be_hidden()
    with opened.http as client:
        client.post("/api/generate", json={"model": opened.model, "keep_alive": "5m"}).raise_for_status()
    expect(row).to_contain_text("unloads in")


@pytest.mark.slow
def test_why_a_model_is_not_loaded_is_said_beside_it(site: Open, browser_page: Open, keep: Open) -> None:
    name = keep("little:f16")
    page = models_page(site(placement="scripted/cpu:refuse_start=no_driver"), browser_page())
    page.get_by_role("button", name=f"Load {name}", exact=True).click()
    alert = row_of(page, name).get_by_role("alert")
    expect(alert).to_contain_text("no_driver")
    assert "\n" not in alert.inner_text()


@pytest.mark.slow
def test_a_model_is_told_in_full(site: Open, browser_page: Open, keep: Open, screenshot: Open) -> None:
    hostile = "<img src=x onerror=alert(1)> MIT <script>alert(2)</script>"
    name = keep("little:f16", license_text=hostile, system="be brief", parameters={"temperature": 0.5})
    page = models_page(site(), browser_page())
    page.get_by_role("button", name=f"Details of {name}").click()
    dialog = page.get_by_role("dialog", name=name)
    expect(dialog.get_by_role("heading", name="About the model")).to_be_visible()
    for words in (
        "llama",
        "F16",
        "little.gguf",
        "Required memory",
        "KV cache",
        "Placements on this machine",
        "llama.cpp",
    ):
        expect(dialog).to_contain_text(words)
    dialog.get_by_text("Licence", exact=True).click()
    expect(dialog.get_by_text(hostile)).to_be_visible()
    assert dialog.locator("img, script").count() == 0
    dialog.get_by_text("System prompt", exact=True).click()
    expect(dialog.get_by_text("be brief", exact=True)).to_be_visible()
    heights = dialog.locator("table").evaluate("table => [table.clientHeight, table.parentElement.clientHeight]")
    assert heights[0] > 40
    assert heights[1] >= heights[0]
    dialog.locator(".body").evaluate("body => body.scrollTo(0, 0)")
    shot(screenshot, page, "models-details")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@pytest.mark.slow
def test_a_model_is_removed_only_after_a_question(site: Open, browser_page: Open, keep: Open, screenshot: Open) -> None:
    name, other = keep("little:f16"), keep("other:f16")
    opened = site()
    page = models_page(opened, browser_page())
    page.get_by_role("button", name=f"Load {name}", exact=True).click()
    expect(row_of(page, name)).to_contain_text("unloads in")
    row_of(page, name).get_by_role("button", name=f"Remove {name}").click()
    dialog = page.get_by_role("dialog", name=f"Remove {name}?")
    expect(dialog).to_contain_text("Running requests finish first")
    shot(screenshot, page, "models-remove")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    row_of(page, name).get_by_role("button", name=f"Remove {name}").click()
    dialog.get_by_role("button", name=f"Remove {name}").click()
    expect(row_of(page, name)).to_have_count(0)
    assert [entry.name for entry in opened.service.shelf.models()] == [other]
    assert opened.service.pool.loaded() == ()


@pytest.mark.slow
def test_a_thousand_models_are_filtered_ordered_and_turned(
    site: Open, browser_page: Open, thousand: int, screenshot: Open
) -> None:
    page = models_page(site(), browser_page(width=1600))
    expect(page.get_by_text(f"1–20 of {thousand}")).to_be_visible()
    expect(page.locator("li.model")).to_have_count(20)
    page.get_by_role("button", name="Next page").click()
    expect(page.get_by_text(f"21–40 of {thousand}")).to_be_visible()
    expect(row_of(page, "model-0020:q4")).to_contain_text("Runs on")
    shot(screenshot, page, "models-thousand")
    page.get_by_label("Filter").fill("0999 q4")
    expect(row_of(page, "model-0999:q4")).to_be_visible()
    expect(page.locator("li.model")).to_have_count(1)
    page.get_by_label("Filter").fill("nothing like it")
    expect(page.get_by_text("No model has “nothing like it”")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en-US", ("Details of", "Stale: kernel: 5.10.1 → ", "Remove the plan of", "is removed", "campaign 3")),
        ("ru-RU", ("Подробнее о", "Устарел: ядро: 5.10.1 → ", "Удалить план", "План удалён", "кампания 3")),
    ],
)
def test_a_plan_is_shown_with_what_renews_it_and_is_removed(
    site: Open,
    browser_page: Open,
    keep: Open,
    configuration: Configuration,
    screenshot: Open,
    language: str,
    said: tuple[str, ...],
) -> None:
    details, stale, remove, removed, origin = said
    name, board = keep("little:f16"), read_board()
    with ModelStore.open(configuration) as store:
        digest = store.list()[0].files[0].digest
    facts = fingerprint_of(PLANNED, board, configuration) | {"kernel": "5.10.1"}
    plan = Plan(
        sha256=digest, placement=PLANNED, board=board.identity(), campaign=3, sentence="", rounds=7, fingerprint=facts
    )
    keep_plan(configuration.data, plan)
    page = models_page(site(placement=""), browser_page(language=language))
    expect(row_of(page, name)).to_contain_text(PLANNED)
    expect(row_of(page, name)).to_contain_text("5.10.1")
    page.get_by_role("button", name=f"{details} {name}").click()
    dialog = page.get_by_role("dialog", name=name)
    for words in (PLANNED, origin, stale, f"trilithon bench {name}"):
        expect(dialog.locator(".plan")).to_contain_text(words)
    assert language == "en-US" or english_on(page, f"the library of {name.partition(':')[0]}", name, "llama") == []
    shot(screenshot, page, f"models-plan-{language[:2]}")
    dialog.get_by_role("button", name=f"{remove} {name}").click()
    expect(dialog).to_contain_text(removed)
    expect(dialog.locator(".plan")).to_be_hidden()
    assert read_plan(configuration.data, digest, board.identity()) is None
    page.keyboard.press("Escape")
    expect(row_of(page, name)).to_contain_text("llama.cpp")
    expect(row_of(page, name)).not_to_contain_text("5.10.1")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1600, False)])
def test_in_russian_narrow_and_wide(
    site: Open, browser_page: Open, keep: Open, screenshot: Open, hub: HubStandIn, width: int, *, dark: bool
) -> None:
    name = keep("qwen2.5-a-model-with-quite-a-long-name:0.5b-instruct-q4_K_M")
    page = models_page(site(), browser_page(width=width, language="ru-RU", dark=dark))
    expect(page.get_by_role("heading", name="Модели")).to_be_visible()
    page.get_by_role("button", name=f"Загрузить {name} в память").click()
    expect(row_of(page, name)).to_contain_text("выгрузится через")
    page.get_by_label("Имя модели").fill("hf.co/ann/Little-GGUF:F16")
    page.get_by_role("button", name="Скачать", exact=True).click()
    expect(page.get_by_text("Скачивание: Little-F16.gguf")).to_be_visible()
    shot(screenshot, page, f"models-russian-{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_role("button", name=f"Подробнее о {name}").click()
    expect(page.get_by_role("heading", name="О модели")).to_be_visible()
    assert english_on(page, f"the library of {name.partition(':')[0]}", name, "llama") == []
    shot(screenshot, page, f"models-russian-details-{width}")

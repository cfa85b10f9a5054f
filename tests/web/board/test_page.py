"""The board's page in a browser, against a live server: this machine's board, and an RK3588's files in its place."""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from russian import english_on

from trilithon.board.sensors.probes import Quantity
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.web.board.readings import Moment, Watch, watch_of

HANDOVER = "scripted/npu:prefill=50000+scripted/cpu:decode=20"
NPU_LOAD = "rk3588_vendor/sys/kernel/debug/rknpu/load"

# Words beyond the picture's edge or over other words, as the browser has laid them out.
CUT = """() => [...document.querySelectorAll('svg.chip')].flatMap(svg => {
  const room = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const out = boxes.filter(([, box]) => box.left < room.left - 1 || box.right > room.right + 1);
  const over = boxes.flatMap(([words, a], place) => boxes.slice(place + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 6)
    .map(([other]) => [words, other]));
  return [...out, ...over].map(String);
})"""


@pytest.fixture
def rk3588_site(tiny: Path, site: Callable, rk3588: Machine) -> Callable:  # type: ignore[type-arg]
    """A server whose page shows the RK3588's files."""

    def start(**more: object):  # type: ignore[no-untyped-def]
        live = site(tiny, **more)
        watch_of(replace(live.context, board=read_board(rk3588)), rk3588)
        return live

    return start


def open_board(page: Page, url: str) -> Page:
    page.goto(f"{url}/board")
    expect(page.locator(".board-lines svg").first).to_be_visible()
    return page


@contextlib.contextmanager
def working(work: Callable[[], None]) -> Iterator[None]:
    """The cores do something all the time."""
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(0.2):
            work()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def five_minutes(watch: Watch) -> list[Moment]:
    """Before now: a long prompt on the NPU, then its answer from the big cores, and again."""
    now_ns, moments = time.monotonic_ns(), []
    for ago in range(290, 0, -1):
        prefill, decode = ago % 97 > 80, 20 < ago % 97 <= 80
        heat = 48 + 16 * math.exp(-(ago % 97) / 40)
        busy = 0.9 + 0.03 * math.sin(ago) if decode else 0.12 + 0.05 * math.sin(ago)
        values: dict[tuple[Quantity, str], float] = {
            ("load", "cpu0-3"): 0.1 + 0.04 * math.sin(ago / 3),
            ("load", "cpu4-5"): busy,
            ("load", "cpu6-7"): busy - 0.04,
            ("load", "GPU"): 0.02,
            ("load", "NPU core 0"): 0.9 if prefill else 0.0,
            ("temperature", "soc-thermal"): heat,
            ("temperature", "bigcore0-thermal"): heat + 5,
            ("temperature", "npu-thermal"): heat + (4 if prefill else 1),
            ("memory", "anonymous"): 3.1 * 2**30,
            ("memory", "page cache"): 5.3 * 2**30,
            ("memory", "DMA buffers"): 1.4 * 2**30,
            ("memory", "free"): 4.6 * 2**30,
            ("power", "ina226 power1"): 3.2 + 6.5 * (prefill or decode) + 0.2 * math.sin(ago),
            ("clock", "memory"): 2.112e9 if prefill or decode else 5.28e8,
        }
        moments.append(Moment(now_ns - ago * 10**9, values, int(prefill or decode), int(decode and ago > 200)))
    return moments


@pytest.mark.slow
def test_the_machine_itself_is_seen_and_its_values_change(tiny: Path, site, browser_page, screenshot) -> None:  # type: ignore[no-untyped-def]
    live = site(tiny)
    page = open_board(browser_page(width=1280, height=900), live.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Board")
    picture = page.locator(".board-picture svg")
    expect(picture).to_contain_text(live.context.board.chip)
    expect(picture).to_contain_text("free")
    before = picture.inner_html()
    page.wait_for_function("before => document.querySelector('.board-picture svg').innerHTML !== before", arg=before)
    assert page.evaluate(CUT) == []
    screenshot(page, "board-this-machine")


@pytest.mark.slow
def test_a_request_at_work_is_seen_where_its_model_sits(tiny: Path, site, browser_page) -> None:  # type: ignore[no-untyped-def]
    live = site(tiny, placement="scripted/cpu:prefill=50000,decode=5000")
    page = open_board(browser_page(), live.url)
    assert page.locator(".chip-seat").count() == 0
    with live.http as http:
        answer = http.post("/api/generate", json={"model": live.model, "prompt": "Hello", "stream": False})
        answer.raise_for_status()
    placed = page.locator(".chip-cpu .chip-seat")
    expect(placed).to_contain_text(live.model)
    page.locator("summary").click()
    expect(page.locator(".board-table")).to_contain_text("scripted/cpu")


@pytest.mark.slow
def test_an_rk3588_wide_and_its_finding_with_the_command(rk3588_site, work, browser_page, tmp_path, screenshot) -> None:  # type: ignore[no-untyped-def]
    live = rk3588_site(placement=HANDOVER)
    watch = watch_of(live.context)
    watch._moments.extend(five_minutes(watch))
    page = open_board(browser_page(width=1280, height=900, permissions=["clipboard-read", "clipboard-write"]), live.url)
    picture = page.locator(".board-picture svg")
    expect(picture).to_contain_text("RK3588")
    expect(picture).to_contain_text("71%")
    asked = {"model": live.model, "prompt": "Hello", "options": {"num_predict": 1000}}
    with working(work), live.http as http, http.stream("POST", "/api/generate", json=asked):
        expect(page.locator(".chip-npu .chip-seat")).to_contain_text("1 running")
        expect(page.locator(".chip-cpu .chip-seat")).to_contain_text("decode · 1 running")
        expect(picture).to_contain_text("97%")
        assert page.evaluate(CUT) == []
        screenshot(page, "board-rk3588")
    (tmp_path / NPU_LOAD).write_text("NPU load:  Core0: 33%, Core1: 68%, Core2: 64%,\n", encoding="utf-8")
    expect(picture).to_contain_text("33%")
    finding = page.locator(".finding-warning").filter(has=page.locator("code")).first
    command = finding.locator("code").first.inner_text()
    assert command
    finding.get_by_role("button", name="Copy the command").first.click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command


@pytest.mark.slow
def test_looking_again_finds_what_has_changed(rk3588_site, browser_page, rk3588) -> None:  # type: ignore[no-untyped-def]
    live = rk3588_site()
    page = open_board(browser_page(), live.url)
    expect(page.locator(".finding").first).to_be_visible()
    subjects = page.locator(".finding-warning .subject")
    expect(subjects.filter(has_text="NPU clock")).to_have_count(1)
    (rk3588.root / "sys/class/devfreq/fdab0000.npu/governor").write_text("performance\n", encoding="utf-8")
    page.get_by_role("button", name="Check again").click()
    expect(subjects.filter(has_text="NPU clock")).to_have_count(0)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_narrow_and_in_russian(rk3588_site, browser_page, screenshot, dark) -> None:  # type: ignore[no-untyped-def]
    live = rk3588_site()
    page = open_board(browser_page(width=360, height=780, language="ru-RU", dark=dark), live.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Плата")
    picture = page.locator(".board-picture svg")
    expect(picture).to_have_attribute("viewBox", re.compile("0 0 344"))
    expect(picture).to_contain_text("Большие ядра")
    expect(page.locator(".finding").first).to_be_visible()
    expect(page.locator(".finding .subject").filter(has_text="малые ядра")).to_have_count(1)
    names = "librkllmrt.so RKLLM rknpu_ondemand dmc_ondemand ondemand performance kbase lavapipe Vulkan Mesa rknpu"
    assert english_on(page, "Orange Pi 5 Plus", *names.split()) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CUT) == []
    screenshot(page, f"board-narrow-{'dark' if dark else 'light'}")


@pytest.mark.slow
def test_who_has_gone_costs_nothing(tiny: Path, site, browser_page) -> None:  # type: ignore[no-untyped-def]
    live = site(tiny)
    watch = watch_of(live.context)
    pages = [open_board(browser_page(), live.url) for _ in range(2)]
    assert watch.works
    for page in pages:
        page.close()

    async def ended() -> None:
        assert watch._task is not None
        await watch._task

    live.run(ended())
    assert not watch.works

"""The chat as a person uses it, in Chromium against a live server."""

import base64
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

Site = Callable[..., Any]
Pages = Callable[..., Page]
Shoot = Callable[[Page, str], Path]

SLOW = "scripted/cpu:prefill=50000,decode=20"
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script> [a](javascript:alert(1)) **bold**'


def ask(page: Page, words: str, label: str = "Ask something") -> None:
    question = page.get_by_label(label)
    question.fill(words)
    question.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    """So many answers have their figures."""
    expect(page.locator(".message.assistant .figures:visible")).to_have_count(count)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_question_is_answered_and_kept(site: Site, browser_page: Pages, tiny: Path, screenshot: Shoot) -> None:
    opened = site(tiny)
    page = browser_page()
    page.goto(opened.url)
    expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
    ask(page, "tell me about stones")
    answer = page.locator(".message.assistant")
    expect(answer.locator(".figures")).to_contain_text("scripted on the CPU")
    expect(answer.locator(".figures")).to_contain_text("first token after")
    words = answer.locator(".words").inner_text()
    assert len(words.split()) > 5
    screenshot(page, "chat-wide")
    page.reload()
    page.locator(".side .open").first.click()
    expect(page.locator(".message.user")).to_contain_text("tell me about stones")
    assert page.locator(".message.assistant .words").inner_text() == words


def test_it_streams_and_escape_stops_it_and_what_came_stays(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny, placement=SLOW)
    page = browser_page()
    page.goto(opened.url)
    ask(page, "a long story")
    words = page.locator(".message.assistant .words")
    expect(words).to_have_text(re.compile(r"\w+ \w+"))
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.reload()
    page.locator(".side .open").first.click()
    expect(page.locator(".message.assistant .words")).to_have_text(re.compile(r"\w+ \w+"))
    assert all(loaded.users == 0 for loaded in opened.service.pool.loaded())


def test_an_edited_question_and_another_try_are_branches(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny).url)
    ask(page, "first words")
    answered(page)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")
    page.locator(".message.assistant").get_by_role("button", name="The branch before").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Ask something")).to_have_value("first words")
    ask(page, "other words")
    expect(page.locator(".message.user .branch")).to_have_text("2/2")
    expect(page.locator(".message.user")).to_contain_text("other words")
    page.locator(".message.user").get_by_role("button", name="The branch before").click()
    expect(page.locator(".message.user")).to_contain_text("first words")
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")


def test_two_placements_side_by_side(site: Site, browser_page: Pages, tiny: Path, screenshot: Shoot) -> None:
    opened = site(tiny)
    page = browser_page()
    page.goto(opened.url)
    expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
    page.get_by_role("button", name="Compare two placements").click()
    first = page.get_by_label("First placement")
    placement = first.input_value()
    page.get_by_label("Second placement").fill(f"{placement},c=512")
    ask(page, "which is faster?")
    expect(page.locator(".side-by-side .message")).to_have_count(2)
    answered(page, 2)
    expect(page.locator(".side-by-side .placement").nth(1)).to_contain_text("c=512")
    screenshot(page, "chat-compare")
    keys = {loaded.key for loaded in opened.service.pool.loaded()}
    assert keys == {f"{opened.model} ({placement})", f"{opened.model} ({placement},c=512)"}


def test_a_placement_that_is_not_offered_is_refused(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny).url)
    expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
    page.get_by_role("button", name="Compare two placements").click()
    page.get_by_label("Second placement").fill("llama.cpp/cpu:log-file=/etc/passwd")
    ask(page, "may I?")
    expect(page.get_by_text("cannot be chosen here")).to_be_visible()


def test_a_hostile_answer_is_shown_as_text(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny, placement=f"scripted/cpu:prefill=50000,decode=5000,text={HOSTILE}")
    page = browser_page()
    page.goto(opened.url)
    ask(page, HOSTILE)
    answered(page)
    assert page.title() == "Chat - Trilithon"
    assert "<script>" in page.locator(".message.user").inner_text()
    words = page.locator(".message.assistant .words")
    assert "<script>document.title=2</script>" in words.inner_text()
    assert page.locator(".message script, .message img, .message a[href^=javascript]").count() == 0


def test_conversations_are_renamed_exported_and_deleted(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny).url)
    ask(page, "# stones")
    answered(page)
    page.get_by_role("button", name="Rename: # stones").click()
    page.get_by_label("Title").fill("About stones")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".side .open")).to_have_text("About stones")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_text("Markdown").click()
    content = download.value.path().read_text(encoding="utf-8")
    assert content.startswith("# About stones") and "## You\n\n# stones" in content
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Delete: About stones").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".side .open")).to_have_count(0)


def test_a_model_that_does_not_see_says_so(site: Site, browser_page: Pages, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(base64.b64decode(_DOT))
    page = browser_page()
    page.goto(site(tiny).url)
    expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
    page.locator(".composer input[type=file]").set_input_files(str(picture))
    expect(page.get_by_text("This model does not see pictures")).to_be_visible()


def test_narrow_dark_and_in_russian(site: Site, browser_page: Pages, tiny: Path, screenshot: Shoot) -> None:
    page = browser_page(width=390, height=800, language="ru-RU", dark=True)
    page.goto(site(tiny).url)
    expect(page.get_by_text("О чём хотите спросить?")).to_be_visible()
    ask(page, "расскажи о камнях", "Спросите о чём-нибудь")
    expect(page.locator(".message.assistant .figures")).to_contain_text("токенов/с")
    screenshot(page, "chat-narrow-dark-ru")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_model_answers(site: Site, browser_page: Pages, demo: Path, screenshot: Shoot) -> None:
    page = browser_page()
    page.goto(site(demo, placement="llama.cpp/cpu").url)
    ask(page, "What is the capital of France?")
    expect(page.locator(".message.assistant .words")).to_contain_text("Paris", timeout=90_000)
    expect(page.locator(".message.assistant .figures")).to_contain_text("llama.cpp on the CPU", timeout=90_000)
    screenshot(page, "chat-demo")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


_DOT = base64.b64encode(
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    + _chunk(b"IEND", b"")
)

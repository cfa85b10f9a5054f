"""The chat as a person uses it, in Chromium against a live server."""

import asyncio
import base64
import re
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from russian import english_on

from trilithon.serve.generation import Piece
from trilithon.web.chat.answering import Question
from trilithon.web.chat.conversations import Conversations

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


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_question_is_answered_and_kept(site: Site, browser_page: Pages, tiny: Path, screenshot: Shoot) -> None:
    opened = site(tiny)
    page = browser_page()
    page.goto(opened.url)
    expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
    expect(page.get_by_text("Base model: it completes text and has no chat template")).to_be_visible()
    ask(page, "tell me about stones")
    answer = page.locator(".message.assistant")
    expect(answer.locator(".figures")).to_contain_text("scripted on the CPU")
    expect(answer.locator(".figures")).to_contain_text("time to first token")
    words = answer.locator(".words").inner_text()
    assert len(words.split()) > 5
    screenshot(page, "chat-wide")
    page.reload()
    page.locator(".side .open").first.click()
    expect(page.locator(".message.user")).to_contain_text("tell me about stones")
    assert page.locator(".message.assistant .words").inner_text() == words


@pytest.mark.slow
def test_a_reload_keeps_the_open_conversation(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny)
    page = browser_page()
    page.goto(opened.url)
    ask(page, "tell me about stones")
    answered(page)
    page.wait_for_url(re.compile(r"/\?conversation=[0-9a-f]{16}$"))
    page.reload()
    expect(page.locator(".message.user")).to_contain_text("tell me about stones")
    page.get_by_role("button", name="New conversation").first.click()
    page.wait_for_url(re.compile(r"/$"))
    page.goto(f"{opened.url}/?conversation=../../x")
    expect(page.get_by_text("there is no such conversation")).to_be_visible()


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_edited_question_and_another_try_are_branches(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny).url)
    ask(page, "first words")
    answered(page)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")
    page.locator(".message.assistant").get_by_role("button", name="Previous branch").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Ask something")).to_have_value("first words")
    ask(page, "other words")
    expect(page.locator(".message.user .branch")).to_have_text("2/2")
    expect(page.locator(".message.user")).to_contain_text("other words")
    page.locator(".message.user").get_by_role("button", name="Previous branch").click()
    expect(page.locator(".message.user")).to_contain_text("first words")
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")


@pytest.mark.slow
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
    expect(page.get_by_text("is not available here")).to_be_visible()


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_it_thinks_is_folded(site: Site, browser_page: Pages, tiny: Path) -> None:
    thought = "so and " * 600
    page = browser_page()
    page.goto(site(tiny, placement=f"scripted/cpu:prefill=50000,decode=2000,thinking={thought}").url)
    ask(page, "what is it?")
    answered(page)
    thinking = page.locator(".message.assistant .thinking")
    expect(thinking.locator("summary")).to_have_text("Thinking")
    expect(thinking.locator("span").first).to_be_hidden()
    thinking.locator("summary").click()
    expect(thinking.locator("span").first).to_be_visible()
    assert "".join(thinking.locator("span").all_text_contents()).split() == thought.split()
    assert thinking.locator("span").count() > 1  # so that a word more does not send all of it again


class Paragraphs(Question):
    """A hundred, in little steps."""

    async def pieces(self) -> AsyncIterator[Piece]:
        for number in range(100):
            yield Piece(text=f"{number} ")
            await asyncio.sleep(0.02)
            yield Piece(text="stones\n\n")
        self.figures["cut"] = True


@pytest.mark.slow
def test_a_long_answer_is_few_elements_and_whole(
    site: Site, browser_page: Pages, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilithon.web.chat.page.Question", Paragraphs)
    page = browser_page()
    page.goto(site(tiny).url)
    ask(page, "how many?")
    answered(page)
    assert page.locator(".message.assistant .words p").all_text_contents() == [
        f"{number} stones" for number in range(100)
    ]
    assert page.locator(".message.assistant .block").count() < 30


@pytest.mark.slow
def test_two_that_need_the_npu_answer_in_turn(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny, placement="scripted/npu:prefill=50000,decode=60").url)
    expect(page.get_by_text("Runs on scripted/npu")).to_be_visible()
    page.get_by_role("button", name="Compare two placements").click()
    page.get_by_label("Second placement").fill("scripted/npu:prefill=50000,decode=60,c=512")
    ask(page, "who is first?")
    expect(page.locator(".side-by-side .message")).to_have_count(2)
    first, second = page.locator(".side-by-side .message").all()
    expect(first.locator(".words")).to_have_text(re.compile(r"\w+ \w+"))
    assert second.locator(".words").inner_text().strip() == ""
    expect(second.locator(".words")).to_have_text(re.compile(r"\w+ \w+"))
    expect(first.locator(".figures")).to_contain_text("scripted on the NPU")


@pytest.mark.slow
def test_a_closed_page_stops_the_answer_and_what_came_is_kept(
    site: Site, browser_page: Pages, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilithon.web.app._RECONNECT_SECONDS", 0.5)
    opened = site(tiny, placement=SLOW)
    page = browser_page()
    page.goto(opened.url)
    ask(page, "a long story")
    expect(page.locator(".message.assistant .words")).to_have_text(re.compile(r"\w+ \w+"))
    page.close()
    kept = Conversations(opened.context.configuration.data, "")
    (heading,) = kept.headings()
    until(lambda: bool(kept.read(heading.id).path()[-1].figures))
    until(lambda: all(loaded.users == 0 for loaded in opened.service.pool.loaded()))
    answer = kept.read(heading.id).path()[-1]
    assert len(answer.text.split()) >= 2
    assert "answer_tokens" not in answer.figures


@pytest.mark.slow
def test_another_branch_is_looked_at_while_an_answer_comes(site: Site, browser_page: Pages, tiny: Path) -> None:
    page = browser_page()
    page.goto(site(tiny, placement=SLOW).url)
    ask(page, "first words")
    words = page.locator(".message.assistant .words")
    expect(words).to_have_text(re.compile(r"\w+ \w+"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    came = words.inner_text()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")
    expect(words).to_have_text(re.compile(r"\w+ \w+"))
    page.get_by_role("button", name="Previous branch").click()
    expect(words).to_have_text(came)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="Next branch").click()
    expect(words).to_have_text(re.compile(r"\w+ \w+"))


@pytest.mark.slow
def test_of_a_long_conversation_the_newest_part_is_shown_first(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny)
    kept = Conversations(opened.context.configuration.data, "")
    tree = kept.begin()
    for number in range(35):
        asked = tree.add(number * 2, "user", f"question {number}")
        tree.add(asked.number, "assistant", f"answer {number}")
    kept.keep(tree)
    page = browser_page()
    page.goto(opened.url)
    page.locator(".side .open").click()
    expect(page.locator(".message")).to_have_count(30)
    expect(page.locator(".message").last).to_contain_text("answer 34")
    ask(page, "one more")
    answered(page)
    for count in (62, 72):
        page.get_by_role("button", name="Show earlier messages").click()
        expect(page.locator(".message")).to_have_count(count)
    expect(page.get_by_role("button", name="Show earlier messages")).to_be_hidden()
    said = [message.strip() for message in page.locator(".message .words").all_text_contents()]
    assert said[:70] == [f"{who} {number}" for number in range(35) for who in ("question", "answer")]
    assert said[70] == "one more"


@pytest.mark.slow
def test_words_are_copied_as_they_were_written(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny, placement=f"scripted/cpu:prefill=50000,decode=5000,text={HOSTILE}")
    page = browser_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(opened.url)
    ask(page, "say it")
    answered(page)
    for secure in (True, False):
        if not secure:  # as over http on another machine
            page.evaluate("copied = null; document.addEventListener('copy', () => copied = getSelection() + '')")
            page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.locator(".message.assistant").get_by_role("button", name="Copy").click()
        expect(page.get_by_text("Copied").first).to_be_visible()
        said = "() => navigator.clipboard.readText()" if secure else "() => copied"
        until(lambda said=said: page.evaluate(said) == HOSTILE)  # type: ignore[misc]


@pytest.mark.slow
def test_each_key_has_its_own_conversations(site: Site, browser_page: Pages, tiny: Path) -> None:
    opened = site(tiny, keys=("ann", "bob"))
    for name, seen in (("ann", 0), ("bob", 0), ("ann", 1)):
        page = browser_page(expected="401")
        page.goto(opened.url)
        page.get_by_label("Key").fill(opened.keys[name])
        page.get_by_label("Key").press("Enter")
        expect(page.get_by_text("Runs on scripted/cpu")).to_be_visible()
        expect(page.locator(".side .open")).to_have_count(seen)
        if not seen and name == "ann":
            ask(page, "a secret")
            answered(page)
            expect(page.locator(".side .open")).to_have_text("a secret")


@pytest.mark.slow
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
    expect(page.get_by_text("This model does not accept pictures")).to_be_visible()


@pytest.mark.slow
def test_narrow_dark_and_in_russian(site: Site, browser_page: Pages, tiny: Path, screenshot: Shoot) -> None:
    page = browser_page(width=390, height=800, language="ru-RU", dark=True)
    page.goto(site(tiny).url)
    expect(page.get_by_text("О чём хотите спросить?")).to_be_visible()
    ask(page, "расскажи о камнях", "Спросите о чём-нибудь")
    expect(page.locator(".message.assistant .figures")).to_contain_text("токен/с")
    assert english_on(page) == []
    screenshot(page, "chat-narrow-dark-ru")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_model_answers(site: Site, browser_page: Pages, demo: Path, screenshot: Shoot) -> None:
    page = browser_page()
    page.goto(site(demo, placement="llama.cpp/cpu").url)
    page.get_by_role("button", name="Settings", exact=True).click()
    for field, value in (("Temperature", "0"), ("Maximum tokens", "40")):  # or it may go on to its context's end
        page.get_by_label(field).fill(value)
    page.get_by_role("button", name="Settings", exact=True).click()
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

"""A bench started from the page: its words, its progress, and a real one of scripted placements in a browser."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect

from trilithon.cli.main import main
from trilithon.errors import UserError
from trilithon.results.store.database import Store
from trilithon.web.results.bench_run import TESTS, BenchState, Wish, arguments, read_progress

QUICK = "scripted/cpu:prefill=50000,decode=5000 scripted/cpu:prefill=50000,decode=2000"
WISH = Wish(model=Path("/models/-odd name.gguf"), name="odd")


def test_the_words_are_those_of_the_command():
    wish = Wish(
        model=WISH.model, name="odd", placements=("a/cpu", "b/cpu:t=4"), tests=TESTS, repetitions=3, budget="5m"
    )
    program, *words = arguments(wish)
    command = main.get_command(None, program)
    found = command.make_context("bench", words).params
    assert found["models"] == (str(WISH.model),)
    assert found["placement"] == ("a/cpu", "b/cpu:t=4")
    assert found["tests"] == TESTS
    assert (found["repetitions"], found["time_budget"], found["progress"]) == (3, "5m", "json")


@pytest.mark.parametrize("wrong", [{"tests": ()}, {"prompt": "many"}, {"generated": "0"}, {"budget": "soon"}], ids=str)
def test_a_wish_that_is_no_good_is_refused_before_anything_starts(wrong):
    with pytest.raises(UserError):
        arguments(Wish(model=WISH.model, name="odd", **wrong))


@given(log=st.text(max_size=400), tail=st.text(max_size=5))
def test_progress_is_found_among_any_words(log, tail):
    step = {"text": "a: pp512", "runs_done": 2, "runs_planned": 10, "remaining_seconds": 3.5}
    state = read_progress(
        f"{log}\n{json.dumps(step)}\n" + '{"campaign": 7}\n' + tail, BenchState(wish=WISH, phase="running")
    )
    assert (state.text, state.runs_done, state.runs_planned, state.remaining_seconds) == tuple(step.values())
    assert state.campaign == 7


def open_form(page, url):
    page.goto(f"{url}/results")
    page.locator("details.bench > summary").click()
    expect(page.get_by_role("checkbox", name="scripted/cpu")).to_be_visible()  # what it is served on
    page.get_by_label("Other placements").fill(QUICK)
    question = page.get_by_role("checkbox", name="Question and answer")
    question.click()
    expect(question).not_to_be_checked()


@pytest.mark.slow
def test_a_bench_is_watched_to_its_verdict(site, configuration, tiny, browser_page, screenshot):
    opened = site(tiny)
    opened.run(opened.service.load(opened.model, "ann", 600))
    page = browser_page()
    open_form(page, opened.url)
    page.get_by_label("Rounds").fill("5")
    screenshot(page, "results-bench-form")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("dialog")).to_contain_text(opened.model)
    screenshot(page, "results-bench-agree")
    page.get_by_role("button", name="Unload and measure").click()
    expect(page.locator(".running .amount")).to_contain_text(re.compile(r"run \d+ of 10"))
    screenshot(page, "results-bench-running")
    page.goto("about:blank")  # it goes on
    page.goto(f"{opened.url}/results")
    expect(page.locator(".running .sentence")).to_contain_text("is the fastest placement", timeout=110_000)
    expect(page.locator("table.results tbody tr")).to_have_count(2)
    screenshot(page, "results-bench-finished")
    page.get_by_role("link", name="Open campaign 1").click()
    expect(page.locator(".chart svg").first).to_be_visible()
    assert opened.service.pool.loaded() == ()


@pytest.mark.slow
def test_a_bench_that_makes_a_plan_says_so(site, tiny, browser_page):
    opened = site(tiny, placement="")
    page = browser_page()
    page.goto(f"{opened.url}/results")
    page.locator("details.bench > summary").click()
    expect(page.get_by_role("checkbox", name="llama.cpp/cpu")).to_be_visible()
    page.get_by_label("Other placements").fill("llama.cpp/cpu:t=1 llama.cpp/cpu:t=2")
    page.get_by_role("checkbox", name="Question and answer").click()
    page.get_by_label("Rounds").fill("1")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".running")).to_contain_text("This model now runs on llama.cpp/cpu:t=", timeout=110_000)
    page.get_by_role("link", name="Plans are on the page of models").click()
    expect(page.locator("li.model")).to_contain_text("Runs on llama.cpp/cpu:t=")
    expect(page.locator("li.model")).to_contain_text("best placement by a benchmark")


@pytest.mark.slow
def test_a_bench_is_stopped_and_what_was_finished_kept(site, configuration, tiny, browser_page):
    opened = site(tiny)
    page = browser_page()
    open_form(page, opened.url)
    page.get_by_label("Rounds").fill("1000")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".running .amount")).to_contain_text("of 2000", timeout=60_000)
    page.get_by_role("button", name="Stop the benchmark").click()
    expect(page.get_by_text("The benchmark was stopped; finished runs are kept.")).to_be_visible(timeout=60_000)
    with Store.open(configuration.results_database) as store:
        assert [each.status for each in store.campaigns()] == ["interrupted"]


@pytest.mark.slow
def test_a_bench_that_cannot_be_says_why(site, tiny, browser_page):
    opened = site(tiny)
    page = browser_page()
    open_form(page, opened.url)
    page.get_by_label("Rounds").fill("none")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("enter a whole number from 1 to 1000")).to_be_visible()
    page.get_by_label("Rounds").fill("")
    page.get_by_label("Other placements").fill("nothing/cpu")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".running")).to_contain_text("The benchmark failed: error:", timeout=60_000)

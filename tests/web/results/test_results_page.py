"""The page of results in a browser: the list, filters, a campaign, two beside each other, and its files."""

import csv
import io
import re
from xml.etree import ElementTree

import pytest
from playwright.sync_api import expect
from russian import english_on
from stored import fill

from trilithon.results.formats import import_campaigns

BEYOND = "all => all.map(each => each.scrollWidth - each.clientWidth)"

NAMES = ("Gemma 3 270M", "Orange Pi 5 Plus", "segmentation fault")


@pytest.fixture
def results(site, configuration, tiny):
    """A server whose store holds twelve campaigns of five placements each."""
    fill(configuration.results_database, 12)
    return site(tiny)


def lines(page):
    return page.locator("table.results tbody tr")


@pytest.mark.slow
def test_the_list_is_filtered_and_turned(results, browser_page, screenshot):
    page = browser_page()
    page.goto(f"{results.url}/results")
    expect(lines(page)).to_have_count(50)
    expect(page.get_by_text("1–50 of 60 results")).to_be_visible()
    screenshot(page, "results-wide")
    page.get_by_role("button", name="Next page").click()
    expect(page.get_by_text("51–60 of 60 results")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("Gemma 3 270M")
    expect(page.get_by_text("1–30 of 30 results")).to_be_visible()
    page.get_by_label("Placement", exact=True).select_option("rkllm/npu")
    expect(lines(page)).to_have_count(6)
    page.get_by_label("From").fill("2026-11-10")
    expect(lines(page)).to_have_count(2)
    expect(page).to_have_url(re.compile("model=Gemma.*placement=rkllm.*since=2026-11-10"))
    page.reload()
    expect(lines(page)).to_have_count(2)
    page.get_by_role("link", name="Clear the filters").click()
    expect(lines(page)).to_have_count(50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "width", "dark", "verdict"), [("en-US", 1440, False, "Verdict"), ("ru-RU", 360, True, "Вывод")]
)
def test_a_campaign_shows_its_verdict_charts_and_figures(
    results, browser_page, screenshot, language, width, dark, verdict
):
    page = browser_page(width=width, language=language, dark=dark)
    page.goto(f"{results.url}/results")
    expect(lines(page).first).to_be_visible()
    assert language == "en-US" or english_on(page, *NAMES) == []
    screenshot(page, f"results-{language[:2]}-{width}")
    lines(page).first.get_by_role("link").click()
    said = {
        "en": "is the recommended placement: decode",
        "ru": "Рекомендуемое размещение — rkllm/npu: генерация — 11,2 токен/с",
    }
    expect(page.locator(".verdict .sentence")).to_contain_text(said[language[:2]])
    expect(page.get_by_role("heading", name=verdict)).to_be_visible()
    expect(page.locator(".chart svg[role=img]")).to_have_count(3)
    expect(page.locator(".figures table")).to_have_count(2)
    hidden = page.locator(".figures .scroll").evaluate_all(
        "all => all.map(each => each.scrollWidth - each.clientWidth)"
    )
    assert max(hidden) <= 1, "every figure is seen without scrolling aside"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert language == "en-US" or english_on(page, *NAMES) == []
    screenshot(page, f"results-campaign-{language[:2]}-{width}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "width", "worse"), [("en-US", 1440, "A is worse, 0.4"), ("ru-RU", 360, "A хуже, отношение к B — 0,4")]
)
def test_two_are_ticked_and_compared(results, browser_page, screenshot, language, width, worse):
    page = browser_page(width=width, language=language)
    page.goto(f"{results.url}/results")
    for line in (4, 3):  # llama.cpp@native/cpu, rkllm/npu
        lines(page).nth(line).get_by_role("checkbox").check()
    page.locator(".comparing a").click()
    expect(page.locator(".sentences li").first).to_contain_text(worse)
    expect(page.locator(".sentences li").first).to_contain_text(re.compile(r"\(0[.,]\d{3}–0[.,]\d{3}\)"))
    expect(page.locator(".figures tbody tr")).to_have_count(2)
    assert language == "en-US" or english_on(page, *NAMES) == []
    screenshot(page, f"results-compared-{language[:2]}-{width}")


@pytest.mark.slow
def test_what_cannot_be_compared_says_why(results, browser_page):
    page = browser_page()
    page.goto(f"{results.url}/results?a=12:rkllm/npu&b=12:gone")
    expect(page.get_by_text("campaign 12 has no placement gone")).to_be_visible()
    page.goto(f"{results.url}/results?a=12:rkllm/npu&b=11:rkllm/npu")
    expect(page.locator(".sentences li").first).to_contain_text("not comparable: different models")
    page.goto(f"{results.url}/results?campaign=99")
    expect(page.get_by_text("there is no campaign 99")).to_be_visible()


@pytest.mark.slow
def test_everything_is_to_be_had_as_a_file(results):
    with results.http as http:
        for form in ("csv", "json", "jsonl", "sql", "trilithon"):
            answer = http.get("/results/export", params={"form": form, "model": "Gemma 3 270M"}).raise_for_status()
            assert "attachment" in answer.headers["content-disposition"]
            found = import_campaigns(answer.content, form)
            assert {p.model["name"].split()[0] for each in found for p in each.placements} == {"Gemma"}
        assert http.get("/results/export", params={"form": "md", "campaign": 1}).text.startswith("|")
        figures = http.get("/results/export", params={"form": "figures", "campaign": 1}).raise_for_status()
        rows = list(csv.DictReader(io.StringIO(figures.text)))
        assert len(rows) == 10 and float(rows[0]["low"]) <= float(rows[0]["median"]) <= float(rows[0]["high"])
        assert http.get("/results/1/charts/decode-tg128.png").content.startswith(b"\x89PNG\r\n")
        assert ElementTree.fromstring(http.get("/results/1/charts/decode-tg128.svg").text).tag.endswith("svg")
        assert "is the recommended placement" in http.get("/results/1/report.html").text
        for asked in ({"params": {"language": "ru"}}, {"headers": {"accept-language": "ru"}}):
            report = http.get("/results/1/report.html", **asked).text
            assert '<html lang="ru">' in report
            assert "Все показатели" in report
            assert "is the recommended placement" not in report
        assert http.get("/results/1/charts/none.png").status_code == 400
        for asked in ({"params": {"language": "ru"}}, {"headers": {"accept-language": "ru"}}):
            assert "Генерация" in http.get("/results/1/charts/decode-tg128.svg", **asked).text
        assert http.get("/results/export", params={"form": "exe"}).status_code == 400
        assert http.get("/results/99/report.html").status_code == 400


@pytest.mark.slow
def test_files_are_behind_the_door(site, configuration, tiny):
    fill(configuration.results_database, 1)
    opened = site(tiny, keys=("ann",))
    paths = ("/results/export?form=csv", "/results/1/report.html", "/results/1/charts/decode-tg128.png")
    with opened.http as http:
        for path in paths:
            assert http.get(path).status_code == 401
        key = {"Authorization": f"Bearer {opened.keys['ann']}"}
        assert http.get(paths[0], headers=key).status_code == 200


@pytest.mark.slow
def test_the_report_is_in_the_language_of_the_page(results, browser_page):
    page = browser_page(width=1000, language="ru-RU")
    page.goto(f"{results.url}/results?campaign=12")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Отчёт одной страницей").click()
    expect(opened.value.get_by_role("heading", name="Все показатели")).to_be_visible()
    assert english_on(opened.value, *NAMES, "died", "KL", "Unicode") == []


def test_the_report_fits_a_phone(results, browser_page):
    page = browser_page(width=360)
    page.goto(f"{results.url}/results/12/report.html")
    expect(page.get_by_role("heading", name="Every figure")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert max(page.locator(".scroll").evaluate_all(BEYOND)) <= 1
    named = page.locator("td.named").first
    assert page.evaluate("cell => getComputedStyle(cell, '::before').content", named.element_handle()) != "none"

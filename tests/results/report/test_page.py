"""The report: one page, whole, offline, in its order, with everything escaped."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from russian import english_in

from trilithon.results.compare import summarise
from trilithon.results.phrases import Phrases
from trilithon.results.report.page import report_title, write_report

HOSTILE = "<script>alert(1)</script>\"'&$title ${body} %s"
VOID = {"meta", "br", "col", "hr"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects text, tags, ids and references."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.text = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


@pytest.fixture(scope="module")
def html(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    path = write_report(folder, example.campaign, example.rows, "Use rkllm/npu.", ["A is better than B"])
    assert [one.name for one in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_sound_and_needs_nothing_from_outside(html):
    page = Page(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", html)
    assert page.tags.count("svg") == 5


def test_the_order(html):
    parts = [
        "<h1>Qwen3 1.7B Q8_0 on Orange Pi 5 Plus</h1>",
        "20 November 2026, 18:42",
        "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43</span></p>",
        "Use rkllm/npu.",
        "A is better than B",
        "<svg",
        "Every figure",
        "Are the answers still correct?",
        "Answers",
        "<summary>Thinking</summary>",
        "What failed",
        "segmentation fault (SIGSEGV)",
        "try a newer Mesa",
        "ggml_vulkan: 0 = Mali-G610",
        "Warnings",
        "npu at 81 °C",
        "Remarks",
        "runs with flash attention off",
        "Measured",
        "rk-llama.cpp b6822-rk2",
        "061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a",
        "6.1.43",
        "cpu4-7 performance",
        "24.1 GB/s",
        "How to read this",
        "Measured with Trilithon 0.1.0",
    ]
    body = html[html.index("<body>") :]
    places, start = [], 0
    for part in parts:
        start = body.find(part, start)
        places.append(start)
        assert start >= 0, part
    assert places == sorted(places)


def test_every_figure_is_in_the_tables(html):
    for value in ("38.0–39.2", "9.53–9.88", "3.07–3.12", "73%", "0.213 (prefill 0.201, decode 0.225)", "98%"):
        assert value in html
    assert html.count('class="text failed"') == 3


def test_what_others_wrote_is_escaped(example, tmp_path):
    campaign = example.campaign
    runs = [
        replace(
            run,
            placement=HOSTILE,
            samples=tuple(replace(s, answer_text=HOSTILE, thinking_text=HOSTILE) for s in run.samples),
            failure=run.failure
            and replace(run.failure, message=HOSTILE, cause=HOSTILE, advice=HOSTILE, last_words=(HOSTILE,)),
            warnings=(HOSTILE,),
            remarks=(HOSTILE,),
        )
        for run in campaign.runs
    ]
    placements = [
        replace(
            one,
            name=HOSTILE,
            build=HOSTILE,
            model={HOSTILE: HOSTILE},
            settings={HOSTILE: HOSTILE},
            must_match={HOSTILE: HOSTILE},
            quality=one.quality and replace(one.quality, reasons=(HOSTILE,), reference=HOSTILE),
        )
        for one in campaign.placements
    ]
    hostile = replace(
        campaign,
        started=HOSTILE,
        source=HOSTILE,
        version=HOSTILE,
        board={"model": HOSTILE, HOSTILE: [{HOSTILE: HOSTILE}]},
        placements=tuple(placements),
        runs=tuple(runs),
    )
    rows = [replace(row, placement=HOSTILE, model=HOSTILE, note=row.note and HOSTILE) for row in example.rows]
    html = write_report(tmp_path, hostile, rows, HOSTILE, [HOSTILE]).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert "".join(page.text).count(HOSTILE) > 30


def test_charts_follow_the_readers_light_or_dark(html):
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    styles = re.findall(r'style="([^"]*)"', svgs)
    assert not any(re.search("#[0-9a-f]{6}", style) for style in styles)
    used = set(re.findall(r"var\(--(\w+)\)", html))
    for scheme in re.findall(r":root \{([^}]*)\}", html):
        assert used - {"line", "page", "font"} <= set(re.findall(r"--(\w+):", scheme))


def test_the_same_each_time(example, html, tmp_path):
    path = write_report(tmp_path, example.campaign, example.rows, "Use rkllm/npu.", ["A is better than B"])
    assert path.read_text(encoding="utf-8") == html


def test_an_import_with_little_known(example, tmp_path):
    placements = [
        replace(one, quality=None, settings={}, must_match={}, bandwidth_bytes_per_second=None, model={"name": "m"})
        for one in example.campaign.placements[:1]
    ]
    campaign = replace(
        example.campaign,
        board={},
        source="llama-bench",
        status="interrupted",
        started="yesterday",
        runs=(),
        placements=tuple(placements),
    )
    html = write_report(tmp_path, campaign, [], "Nothing was measured.").read_text(encoding="utf-8")
    text = "".join(Page(html).text)
    assert report_title(campaign, []) == "m on an unknown board"
    assert "imported from llama-bench" in text
    assert "interrupted" in text
    assert "What failed" not in text


def test_a_folder_that_cannot_be_made(example, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_report(tmp_path / "file", example.campaign, [], "x", charts={})


def test_matplotlib_is_loaded_only_for_drawing():
    code = "import sys, trilithon.results.report.page, trilithon.results.table; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_page_in_russian_has_no_english_of_its_own(example, tmp_path):
    """What engines and runs said stays as it was stored."""
    russian = Phrases("ru")
    rows = summarise(example.campaign, russian)
    path = write_report(tmp_path, example.campaign, rows, "Берите rkllm/npu.", phrases=russian)
    page = path.read_text(encoding="utf-8")
    assert '<html lang="ru">' in page
    own = re.findall(r"<(?:h2|th scope=.col.|summary|caption|footer)[^>]*>([^<]*)<", page)
    own += re.findall(r"<li>(<b>.*?)</li>", page, re.DOTALL)
    assert len(own) > 20
    assert {
        text for text in own if english_in(re.sub(r"</?b>|llama-bench|Unicode|KL|tell me about openai", "", text))
    } == set()
    assert "Верны ли ответы?" in page
    assert "5 прогонов" in page

"""The charts: who is in them, that they are sound XML, fit their frame, and come out the same each time."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from trilithon.measure.records import QualityRecord
from trilithon.results.compare import Estimate, summarise
from trilithon.results.phrases import Phrases
from trilithon.results.report.charts import spread
from trilithon.results.report.plots import as_svg, figures, write_pngs

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def charts(example):
    return figures(example.rows, source="a source")


@pytest.fixture(scope="module")
def sweep_charts(sweep):
    return figures(sweep)


class Russian(Phrases):
    """Figures named as the pages name them, for a Russian reader."""

    def __init__(self):
        super().__init__("ru")

    def metric(self, metric):
        return "Скорость"

    def unit(self, metric):
        return "токен/с"


@pytest.fixture(scope="module")
def russian_charts(example):
    return figures(summarise(example.campaign, Russian()), phrases=Russian())


def words(chart):
    """The drawn text, by line; a name may be broken over two."""
    root = ElementTree.fromstring(as_svg(chart))
    return ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]


def test_a_comparison_has_the_charts_of_an_article(charts):
    assert list(charts) == ["prefill-pp512", "decode-tg128", "bandwidth-tg128", "question-time", "words-per-second"]
    assert charts["decode-tg128"].title == "Decode, tg128: tokens per second, higher is better"
    assert charts["question-time"].title == "Question, total time: seconds, lower is better"


def test_every_placement_stands_in_every_chart(charts, example):
    for chart in charts.values():
        drawn = words(chart)
        for placement in example.campaign.placements:
            assert placement.name in drawn
            assert placement.name in chart.description
        assert "no result · failed 5 of 5: segmentation fault" in drawn
        assert "a source" in drawn


def test_bars_are_best_first_and_say_their_numbers(charts, example):
    drawn = words(charts["decode-tg128"])
    names = [word for word in drawn if "/" in word and "·" not in word]
    assert names == ["llama.cpp@native/cpu", "rkllm/npu", "llama.cpp/cpu", "rk-llama.cpp/npu", "llama.cpp/gpu"]
    assert {"9.59", "(9.53–9.88)", "degraded"} <= set(drawn)


def test_broken_stands_behind_the_sound_however_fast(example):
    broken = QualityRecord(verdict="broken", reference="llama.cpp/cpu")
    rows = [replace(row, quality=broken) if row.placement == "rkllm/npu" else row for row in example.rows]
    chart = figures(rows)["prefill-pp512"]
    assert [part.split(":")[0] for part in chart.description.split("; ")][-2:] == ["rkllm/npu", "llama.cpp/gpu"]
    assert "broken" in words(chart)
    assert "pattern" in as_svg(chart)  # hatched
    assert "pattern" not in as_svg(figures(example.rows)["prefill-pp512"])


def test_lengths_and_depths_become_lines(sweep_charts):
    assert list(sweep_charts) == [
        "prefill-pp512",
        "prefill-by-prompt-tokens",
        "decode-tg128",
        "bandwidth-tg128",
        "decode-by-depth-tg128",
    ]
    for name in ("prefill-by-prompt-tokens", "decode-by-depth-tg128"):
        drawn = words(sweep_charts[name])
        assert "rkllm/npu" in drawn
        assert "No result: llama.cpp/gpu (failed 5 of 5: segmentation fault)" in drawn
        assert "rk-llama.cpp/npu+" in drawn


def test_threads_and_micro_batches_become_lines(sweep):
    """Placements that differ in one setting are points of one line; handovers have settings of two halves."""
    decode = next(row for row in sweep if row.test.kind == "tg" and row.test.depth == 0 and row.estimate)

    def measured(placement, median, model=""):
        name = f"{placement} with {model}" if model else placement
        return replace(decode, placement=name, estimate=Estimate(median, median - 0.1, median + 0.1, 5))

    rows = [measured(f"llama.cpp/cpu:t={n},fa=off", 4.0 * n) for n in (1, 2, 4)]
    rows += [measured(f"ik_llama.cpp/cpu:fa=off,t={n}", 6.0 + n) for n in (4, 1, 2)]
    rows += [measured(f"llama.cpp/cpu:ub={n}", 5.0 + n / 100, "a.gguf") for n in (128, 512)]
    rows += [measured("rkllm/npu:t=1+llama.cpp/cpu:t=2", 3.0), measured("llama.cpp/gpu:t=4", 2.0)]
    charts = figures(rows)
    assert list(charts) == ["decode-tg128", "bandwidth-tg128", "decode-by-threads-tg128", "decode-by-micro-batch-tg128"]
    threads, batches = charts["decode-by-threads-tg128"], charts["decode-by-micro-batch-tg128"]
    assert threads.description == "llama.cpp/cpu:fa=off: 1 4, 2 8, 4 16; ik_llama.cpp/cpu:fa=off: 1 7, 2 8, 4 10"
    ring = "Ring: from about 2 threads on, llama.cpp/cpu:fa=off is faster than ik_llama.cpp/cpu:fa=off."
    assert ring in " ".join(words(threads))
    assert batches.description == "llama.cpp/cpu with a.gguf: 128 6.28, 512 10.12"


def test_a_chart_speaks_the_readers_language(charts, russian_charts, sweep, example):
    """All but the names of placements and of llama-bench's tests, and what a child died of; files keep their names."""
    assert list(russian_charts) == list(charts)
    same = [placement.name for placement in example.campaign.placements]
    same += ["segmentation fault", "pp512", "tg128"]
    for chart in russian_charts.values():
        for line in (*words(chart), chart.title, *chart.description.split(". ")):
            for name in sorted(same, key=len, reverse=True):
                line = line.replace(name, "")
            assert not re.search("[A-Za-z]", line), line
    lines = figures(sweep, phrases=Russian())
    assert list(lines) == list(figures(sweep))
    assert "токенов в промпте" in words(lines["prefill-by-prompt-tokens"])


def test_the_words_stay_inside_their_chart(charts, russian_charts, sweep_charts, example):
    name = "a-very-long-engine-name.cpp@with-a-build-of-its-own-armv8.2-a+dotprod/npu+llama.cpp@native/cpu" * 2
    long = figures([replace(row, placement=f"{row.placement}{name}") for row in example.rows])
    for chart in (*charts.values(), *russian_charts.values(), *sweep_charts.values(), *long.values()):
        chart.draw_without_rendering()
        frame = chart.bbox
        for text in (*chart.texts, *(text for axes in chart.axes for text in axes.texts)):
            box = text.get_window_extent()
            assert box.x0 >= frame.x0 - 1, text
            assert box.x1 <= frame.x1 + 1, text


def test_a_long_foot_is_broken_between_words(example):
    source = "Qwen2.5 0.5B Instruct in F16 and in Q8_0 on an Orange Pi 5 Plus with 16 GB, an unknown " + "kernel" * 60
    for chart in figures(example.rows, source=source).values():
        foot = words(chart)[-3:]
        assert " ".join(foot[:-1]) in source and len(foot[0]) > 40
        assert foot[-1].startswith("kernel") and "…" in foot[-1]  # one word too long for a line


def test_an_implausible_bandwidth_is_not_drawn(example):
    rows = [
        replace(row, fraction_of_bandwidth=None, implausible_bandwidth=1.196) if row.fraction_of_bandwidth else row
        for row in example.rows
    ]
    assert not any("bandwidth" in name for name in figures(rows))


def test_one_placement_and_one_run_are_enough(example):
    rows = [
        replace(row, estimate=Estimate(row.estimate.median, None, None, 1), values=row.values[:1])
        for row in example.rows
        if row.placement == "llama.cpp/cpu"
    ]
    charts = figures(rows)
    assert len(charts) == 5
    assert "Too few runs for an interval." in words(charts["decode-tg128"])
    assert "(one run)" in words(charts["decode-tg128"])


def test_only_failures_still_make_a_chart(example):
    charts = figures([row for row in example.rows if row.placement == "llama.cpp/gpu"])
    assert "llama.cpp/gpu" in words(charts["prefill-pp512"])
    assert "bandwidth-tg128" not in charts
    assert figures([]) == {}


def test_runs_that_failed_beside_others_are_told(example):
    rows = [replace(row, note="failed 1 of 6: out of memory") if row.estimate else row for row in example.rows]
    assert "degraded, failed 1 of 6" in words(figures(rows)["decode-tg128"])


def test_two_models_are_told_apart(example):
    other = [replace(row, model="Qwen3 1.7B Q4_0") for row in example.rows]
    drawn = words(figures([*example.rows, *other])["decode-tg128"])
    assert "rkllm/npu · Qwen3 1.7B Q8_0" in drawn
    assert "rkllm/npu · Qwen3 1.7B Q4_0" in drawn


def test_svg_is_the_same_each_time_and_says_what_it_shows(example, charts):
    again = figures(example.rows, source="a source")
    identifiers = []
    for name, chart in charts.items():
        svg = as_svg(chart)
        assert svg == as_svg(again[name])
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == f"{chart.title}. {chart.description}"
        assert root.find(f"{SVG}title").text == chart.title
        identifiers += [element.get("id") for element in root.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))


def test_hostile_names_stay_text(example):
    name = "<script>alert(1)</script>\"'&$x^2$ #0072b2/cpu"
    chart = figures([replace(row, placement=name) for row in example.rows[:1]])["prefill-pp512"]
    assert "<script" not in as_svg(chart)
    assert name in words(chart)


def test_pngs(charts, tmp_path):
    paths = write_pngs(charts, tmp_path / "new" / "folder")
    assert [path.stem for path in paths] == list(charts)
    for path in paths:
        height, width, _ = imread(path).shape
        assert width == 960
        assert height > 300


@given(st.lists(st.floats(-1e3, 1e3), max_size=12).map(sorted), st.floats(0, 50))
def test_spread_keeps_apart_and_moves_no_more_than_needed(places, gap):
    moved = spread(places, gap)
    assert len(moved) == len(places)
    assert all(second - first >= gap - 1e-6 for first, second in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)
    if all(second - first >= gap for first, second in pairwise(places)):
        assert moved == pytest.approx(places, abs=1e-6)

"""The end-of-bench table in each of its shapes."""

import csv
import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from russian import english_in

from trilithon.results.compare import Estimate, summarise
from trilithon.results.phrases import Phrases
from trilithon.results.table import estimate_text, render_csv, render_jsonl, render_markdown, render_terminal


def test_terminal_fits_and_keeps_every_placement(example):
    text = render_terminal(example.rows, width=100, colour=False)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for placement in example.campaign.placements:
        assert text.count(f" {placement.name} ") == 3  # once per test
    assert text.count("failed 5 of 5") == 3
    assert "of bandwidth" not in text.splitlines()[0]
    assert "73%" in text


def test_terminal_aligns_its_columns(example):
    lines = render_terminal(example.rows, width=100, colour=False).splitlines()
    column = lines[0].index("quality")
    found = [line for line in lines if "degraded" in line]
    assert len(found) == 3
    assert {line.index("degraded") for line in found} == {column}


def test_terminal_groups_the_lesser_figures_of_a_question(example):
    text = render_terminal(example.rows, width=100, colour=False)
    assert "149 words in 20.0 s" in text
    assert "1.03 s, then 9.63 tokens/s" in text
    assert "Time to first token" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_terminal_obeys_its_width(example, width):
    assert max(map(len, render_terminal(example.rows, width=width, colour=False).splitlines())) <= width


def test_colour_only_adds_escapes(example):
    plain = render_terminal(example.rows, width=100, colour=False)
    coloured = render_terminal(example.rows, width=100, colour=True)
    assert "\x1b[" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


def test_markup_in_a_name_is_text(example):
    rows = [replace(row, placement="[red]x[/red]/cpu") for row in example.rows[:1]]
    assert "[red]x[/red]/cpu" in render_terminal(rows, width=100, colour=False)
    assert r"\[red\]x\[/red\]/cpu" in render_markdown(rows)


def test_an_estimate_in_words(example):
    row = replace(example.rows[0], estimate=Estimate(52.13, 51.8, 52.6, 5))
    assert estimate_text(row) == "52.1 (51.8–52.6) tokens/s"
    assert estimate_text(replace(row, estimate=Estimate(52.13, None, None, 1))) == "52.1 (one run) tokens/s"
    assert estimate_text(replace(row, estimate=Estimate(52.13, None, None, 2))) == "52.1 (two runs) tokens/s"
    assert estimate_text(replace(row, estimate=None, note="skipped")) == "skipped"


def test_runs_that_failed_beside_others_are_told(example):
    rows = [replace(example.rows[0], note="failed 1 of 6: out of memory")]
    for text in (render_terminal(rows, width=100, colour=False), render_markdown(rows), render_csv(rows)):
        assert "failed 1 of 6: out of memory" in text


def test_csv_gives_every_figure_back(example):
    records = list(csv.DictReader(StringIO(render_csv(example.rows))))
    assert len(records) == len(example.rows)
    for record, row in zip(records, example.rows, strict=True):
        assert (record["placement"], record["test"], record["figure"]) == (
            row.placement,
            row.test.name,
            row.metric.name,
        )
        assert record["median"] == ("" if row.estimate is None else str(row.estimate.median))


def test_jsonl_is_one_object_per_line(example):
    objects = [json.loads(line) for line in render_jsonl(example.rows).splitlines()]
    assert [one["values"] for one in objects] == [list(row.values) for row in example.rows]
    assert [one["median"] is None for one in objects] == [row.estimate is None for row in example.rows]


def test_markdown_has_a_line_per_figure_and_no_stray_bars(example):
    rows = [replace(example.rows[0], placement="a|b\n<script>")]
    lines = render_markdown(rows + example.rows).splitlines()
    assert len(lines) == len(example.rows) + 3
    assert {line.replace(r"\|", "").count("|") for line in lines} == {9}
    assert "<script" not in lines[2]


def test_nothing_measured():
    assert "placement" in render_terminal([], width=100, colour=False)
    assert render_csv([]).startswith("placement")
    assert render_jsonl([]) == ""
    assert len(render_markdown([]).splitlines()) == 2


def test_a_table_in_russian_has_its_words_and_numbers(example):
    russian = Phrases("ru")
    rows = [replace(row, simulated="stand-in") for row in summarise(example.campaign, russian)]
    names = [placement.name for placement in example.campaign.placements] + [rows[0].model]
    for text in (render_terminal(rows, width=100, colour=False, phrases=russian), render_markdown(rows, russian)):
        assert english_in(re.sub(r"segmentation fault|\(SIGSEGV\)", "", text), *names) == set()
        assert "слов за 20,0 с" in text or "| Слова |" in text
        assert re.search(r"\d,\d+ \(\d+(,\d+)?–\d+(,\d+)?\) токен/с", text)

"""Every figure, unit and verdict has its words in both languages, and no stored text becomes HTML."""

import itertools
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.measure.metrics import METRICS
from trilithon.measure.records import Test
from trilithon.results.formats import import_file
from trilithon.results.report.charts import COLOURS
from trilithon.results.report.page import DARK
from trilithon.results.store.database import Store
from trilithon.web.quantities import number
from trilithon.web.results.listing import Result, ResultsScreen, read_screen
from trilithon.web.results.query import Query
from trilithon.web.results.tables import figure_tables, options, results_table
from trilithon.web.results.wording import PagePhrases, metric_title, quality_title, sentence, step_text, unit_title
from trilithon.web.texts import LANGUAGES, texts_for

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_that_can_be_measured_has_its_words(language):
    text = texts_for(language)
    for metric in itertools.chain(*METRICS.values()):
        assert metric_title(metric.name, text) and unit_title(metric.unit, text)
    for verdict in ("reference", "same", "degraded", "broken", "unknown", "–"):
        assert quality_title(verdict, text)
    for kind in ("question", "cold", "questions"):
        assert PagePhrases(text).test(Test(kind=kind)) == text(f"results.test_{kind}")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("answer", ["better", "worse", "same", "not comparable"])
@pytest.mark.parametrize("ratio", [(None, None, None), (1.2, None, None), (1.2, 1.1, 1.3)], ids=str)
def test_every_verdict_is_a_sentence(language, answer, ratio):
    words = dict(zip(("ratio", "low", "high"), ratio, strict=True))
    found = {"test": "tg128", "metric": "decode_tokens_per_second", "answer": answer, "reason": "too few", **words}
    said = sentence(found, texts_for(language))
    assert said.startswith("tg128, ") and said.endswith(".")
    assert (number("1.100–1.300", texts_for(language)) in said) == (ratio[1] is not None and answer != "not comparable")


def test_steps_that_are_not_known_stay_as_they_are():
    text = texts_for("ru")
    assert step_text("llama.cpp/cpu: loading", text) == "llama.cpp/cpu: загрузка"
    assert step_text("llama.cpp/cpu: pp512 @ d4096", text) == "llama.cpp/cpu: pp512 @ d4096"


@given(said=st.text(max_size=40).map(lambda tail: HOSTILE + tail))
def test_stored_text_is_never_markup(said):
    text = texts_for("en")
    names = ("started", "source", "model", "quantization", "placement", "build", "unit")
    result = Result(campaign=1, status="finished", verdict="", figures=(), failed=0, **dict.fromkeys(names, said))
    row = dict.fromkeys(("placement", "question", "median", "interval", "note", "bandwidth"), said)
    row |= {"test": "question", "metric": "words", "unit": "words", "quality": "same", "runs": 1, "failure": None}
    screen = ResultsScreen(query=Query(), results=(result,), total=1)
    for html in (results_table(screen, (), text), figure_tables([row], text), options([said], said, said)):
        assert "<img" not in html and "&lt;img" in html


def test_the_page_has_the_reports_colours():
    css = (files("trilithon.web") / "static" / "results.css").read_text()
    for palette in (COLOURS, DARK):
        for name, colour in palette.items():
            assert name == "card" or f"--{name}: {colour};" in css


@pytest.mark.parametrize(("language", "words"), [("en", "rounded average"), ("ru", "округлённое среднее")])
def test_a_tables_average_is_marked_in_the_list(language, words, tmp_path):
    data = Path(__file__).parents[2] / "results" / "data"
    with Store.open(tmp_path / "results.sqlite") as store:
        for name in ("llama-bench.md", "llama-bench.json"):
            store.add(import_file(data / name)[0])
    screen = read_screen(tmp_path / "results.sqlite", Query())
    assert results_table(screen, (), texts_for(language)).count(words) == 6

"""The atlas on a page: filters, pages, bars, tables and addresses, in both languages."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from russian import english_in

from trilithon.board.chips import chips
from trilithon.estimate.answer import estimates
from trilithon.estimate.rows import Measurement, atlas
from trilithon.estimate.subjects.subject import subject_named
from trilithon.web.atlas.query import FILTERS, AtlasQuery
from trilithon.web.atlas.screen import MOST_BARS, PAGE_SIZE, screen_of
from trilithon.web.atlas.tables import bar_list, estimate_table, options, row_table
from trilithon.web.texts import LANGUAGES, texts_for

TEXT = texts_for("en")


def row(model: str = "Qwen2.5-1.5B-Instruct", decode: float | None = 10.0, **changes: object) -> Measurement:
    first = next(known for known in atlas() if known.unit == "cpu" and not known.notes)
    return replace(first, model=model, params_b=1.5, decode_tps=decode, **changes)  # type: ignore[arg-type]


def test_filters_narrow_each_other() -> None:
    everything = screen_of(atlas(), AtlasQuery())
    assert everything.total == len(atlas())
    for name in FILTERS:
        for choice in everything.choices[name]:
            screen = screen_of(atlas(), AtlasQuery(**{name: choice}))
            assert 0 < screen.total < everything.total
            assert screen.choices[name] == everything.choices[name]
            assert set(screen.choices["chip"]) <= set(everything.choices["chip"])
    both = screen_of(atlas(), AtlasQuery(chip="RK3588", model="qwen2-1.5b"))
    for engine in both.choices["engine"]:
        assert screen_of(atlas(), replace(both.query, engine=engine)).total > 0
    assert {one.machine for one in both.rows} == {"RK3588"}


def test_every_row_is_on_one_page() -> None:
    first = screen_of(atlas(), AtlasQuery())
    pages = [screen_of(atlas(), AtlasQuery(page=page)).rows for page in range(first.pages)]
    assert [one for page in pages for one in page] == list(atlas())
    assert max(map(len, pages)) == PAGE_SIZE
    assert screen_of(atlas(), AtlasQuery(page=999)).query.page == first.pages - 1
    assert screen_of((), AtlasQuery(page=3)).query.page == 0


def test_bars_are_medians_of_what_can_be_compared() -> None:
    rows = [row(decode=speed) for speed in (9.0, 10.0, 14.0)]
    rows += [row("qwen2.5:1.5b", 11.0), row(decode=50.0, notes="MTP draft model"), row(decode=None)]
    (bar,) = screen_of(rows, AtlasQuery()).bars
    assert (bar.value, bar.low, bar.high, bar.count, bar.unit) == (10.5, 9.0, 14.0, 4, "cpu")
    assert bar.label.startswith("qwen2-1.5b · ")
    (bar,) = screen_of(rows, AtlasQuery(model="qwen2-1.5b", engine=rows[0].engine.split()[0])).bars
    assert bar.label == f"{rows[0].machine} · {rows[0].quant}"
    everything = screen_of(atlas(), AtlasQuery())
    assert len(everything.bars) == MOST_BARS < everything.groups
    speeds = [bar.value for bar in everything.bars]
    assert speeds == sorted(speeds, reverse=True)


@given(st.dictionaries(st.sampled_from([*FILTERS, "figure", "page"]), st.text(max_size=300)))
def test_an_address_is_read_as_it_was_written(parameters: dict[str, str]) -> None:
    from urllib.parse import parse_qsl

    query = AtlasQuery.read(parameters)
    again = AtlasQuery.read(dict(parse_qsl(query.address(), keep_blank_values=True)))
    assert again == query


@pytest.mark.parametrize("language", LANGUAGES)
def test_tables_are_in_the_readers_language(language: str) -> None:
    text = texts_for(language)
    hostile = row("<script>alert(1)</script>", source='"><img src=x>')
    screen = screen_of([hostile, *atlas()[:5]], AtlasQuery())
    table = row_table(screen, text)
    assert "<script>" not in table and "<img" not in table and "&lt;script&gt;" in table
    assert bar_list(screen.bars, text).count("<li>") == len(screen.bars)
    assert 'value="&lt;b&gt;" selected' in options(["a"], "<b>", "all")
    rows = estimates(subject_named("qwen2.5-7b"), [chips()["RK3588"], chips()["RK3566"]])
    table = estimate_table(rows, 4 << 30, text)
    assert table.count('class="bad"') == sum(row.memory.needed + (600 << 20) > 4 << 30 for row in rows) > 0
    assert language == "en" or not english_in(table.split("<tbody>")[1].split('class="basis"')[1].split("<")[0])

"""What an address asks for of the results, and what the database answers: any text is a value, never SQL."""

import sqlite3
from datetime import date, timedelta
from urllib.parse import parse_qsl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import fill

from trilithon.errors import StoreError
from trilithon.results.compare import summarise
from trilithon.results.store.database import Store
from trilithon.web.results.listing import read_screen, read_wanted
from trilithon.web.results.query import PAGE_SIZE, Chosen, Query

TEXT = st.text(max_size=30)
DAYS = st.one_of(st.just(""), st.dates(min_value=date(1000, 1, 1)).map(date.isoformat))
QUERIES = st.builds(
    Query, model=TEXT, quantization=TEXT, placement=TEXT, build=TEXT, since=DAYS, until=DAYS, page=st.integers(0, 10**6)
)
NAMES = ("model", "quantization", "placement", "build", "since", "until", "page")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "results.sqlite"
    fill(path, 24, runs=3)
    return path


@given(query=QUERIES)
def test_an_address_says_all_of_a_query(query):
    assert Query.read(dict(parse_qsl(query.address(), keep_blank_values=True))) == query


@given(parameters=st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXT), TEXT))
def test_any_address_is_some_query(parameters):
    query = Query.read(parameters)
    where, values = query.where()
    assert where.count("?") == len(values)
    assert 0 <= query.page <= 10**6


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=QUERIES)
def test_no_text_breaks_out_of_its_place(database, query):
    screen = read_screen(database, query)
    assert screen.total == sum(map(len, read_wanted(database, query).values()))
    assert all(query.model in ("", result.model) for result in screen.results)


@given(campaign=st.integers(0, 10**12), placement=st.text(min_size=1, max_size=50))
def test_a_chosen_placement_is_spelled_and_read(campaign, placement):
    assert Chosen.read(str(Chosen(campaign, placement))) == Chosen(campaign, placement)


@pytest.mark.parametrize("text", ["", "3", "3:", ":x", "x:y", "-1:x", "²:x"])
def test_what_is_no_placement_is_not_chosen(text):
    assert Chosen.read(text) is None


@pytest.mark.parametrize(
    ("query", "campaigns"),
    [
        (Query(), set(range(1, 25))),
        (Query(model="Gemma 3 270M"), set(range(2, 25, 2))),
        (Query(quantization="Q8_0"), set(range(1, 25, 2))),
        (Query(since="2026-11-03", until="2026-11-04"), {3, 4}),
        (Query(until="2026-11-01"), {1}),
        (Query(build="llama.cpp b7120 (native)"), set(range(1, 25))),
        (Query(model="none of them"), set()),
    ],
)
def test_filters(database, query, campaigns):
    assert set(read_wanted(database, query)) == campaigns


def test_every_page_together_is_everything_once(database):
    screens = [read_screen(database, Query(page=page)) for page in range(3)]
    assert [len(screen.results) for screen in screens] == [PAGE_SIZE, PAGE_SIZE, 20]
    seen = [(result.campaign, result.placement) for screen in screens for result in screen.results]
    assert len(set(seen)) == len(seen) == screens[0].total == 120
    assert seen[0][0] == 24  # the newest first
    assert read_screen(database, Query(page=99)).query.page == 2


def test_the_medians_are_the_reports(database):
    with Store.open(database) as store:
        rows = {(row.placement, row.test): row for row in summarise(store.campaign(24))}
    shown = [result for result in read_screen(database, Query()).results if result.campaign == 24]
    assert [len(result.figures) for result in shown] == [2, 0, 2, 2, 2]
    for result in shown:
        for figure in result.figures:
            row = rows[result.placement, figure.test]
            assert figure.median == pytest.approx(row.estimate.median, rel=1e-12)
            assert (figure.metric, figure.runs) == (row.metric, row.estimate.runs)
    assert [result.failed for result in shown] == [0, 3, 0, 0, 0]


def test_there_need_be_no_database(tmp_path):
    assert read_screen(None, Query()).total == read_screen(tmp_path / "none.sqlite", Query()).total == 0
    assert not (tmp_path / "none.sqlite").exists()


def test_another_programs_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "a").write_text("no database at all")
    with pytest.raises(StoreError) as error:
        read_screen(tmp_path / "a", Query())
    assert "\n" not in str(error.value)


def test_reading_does_not_wait_for_a_writer(database):
    with sqlite3.connect(database) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert read_screen(database, Query()).total == 120
        writer.rollback()


def test_dates_count_days(database):
    day = date(2026, 11, 1) + timedelta(days=23)
    assert set(read_wanted(database, Query(since=day.isoformat()))) == {24}

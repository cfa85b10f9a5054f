"""Two figures of the newest campaign that measured a placement of a file on this board."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.snapshot import Board, read_board
from trilithon.errors import StoreError
from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample, Test
from trilithon.results.compare import summarise
from trilithon.results.speeds import last_speeds
from trilithon.results.store.database import Store

SHA, NAME = "ab" * 32, "llama.cpp/cpu"
PREFILL, DECODE = Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128)
DEEP = Test(kind="tg", generated_tokens=128, depth=4096)
QUESTION = Test(kind="question", question="why?")


@pytest.fixture
def board() -> Board:
    return read_board()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def sample(test: Test, *, prefill: float = 0, decode: float = 0) -> Sample:
    """With these rates, in tokens per second."""
    return Sample(
        test=test,
        started_ns=0,
        finished_ns=10**9,
        prompt_evaluated=512 if prefill else None,
        prompt_ns=round(512e9 / prefill) if prefill else None,
        decode_steps=100 if decode else None,
        decode_ns=round(100e9 / decode) if decode else None,
    )


def campaign(board: Board, *runs: tuple[Sample, ...], outcome: str = "finished") -> Campaign:
    placement = PlacementRecord(
        name=NAME,
        engine="llama.cpp",
        build="wheel",
        build_version="1",
        unit="cpu",
        model={"name": "m", "sha256": SHA},
        settings={},
        must_match=board.must_match() | {"file": SHA},
    )
    made = tuple(
        Run(placement=NAME, round=number, outcome=outcome, started_ns=0, finished_ns=1, samples=samples)  # type: ignore[arg-type]
        for number, samples in enumerate(runs)
    )
    return Campaign(
        id=0,
        started="2026-01-01T00:00:00+00:00",
        status="finished",
        source="trilithon",
        version="1",
        board={},
        plan={},
        placements=(placement,),
        runs=made,
    )


def test_they_are_the_medians_that_a_report_shows(database: Path, board: Board) -> None:
    runs = [
        (sample(PREFILL, prefill=rate), sample(DECODE, decode=rate / 10), sample(DEEP, decode=1))
        for rate in (90, 100, 500)
    ]
    with Store.open(database) as store:
        number = store.add(campaign(board, *runs))
        rows = {(row.test, row.metric.name): row for row in summarise(store.campaign(number))}
    found = last_speeds(database, SHA, NAME, board)
    assert found is not None
    assert found.campaign == number
    prefill = rows[PREFILL, "prefill_tokens_per_second"].estimate
    decode = rows[DECODE, "decode_tokens_per_second"].estimate
    assert prefill is not None
    assert decode is not None
    assert (found.prefill, found.decode) == (pytest.approx(prefill.median), pytest.approx(decode.median))


def test_a_question_does_where_there_is_no_plainer_test(database: Path, board: Board) -> None:
    with Store.open(database) as store:
        store.add(campaign(board, (sample(QUESTION, prefill=50, decode=9),)))
    found = last_speeds(database, SHA, NAME, board)
    assert found is not None
    assert (found.prefill, found.decode) == (pytest.approx(50), pytest.approx(9))


def test_the_newest_campaign_that_worked_counts(database: Path, board: Board) -> None:
    with Store.open(database) as store:
        store.add(campaign(board, (sample(DECODE, decode=5),)))
        wanted = store.add(campaign(board, (sample(DECODE, decode=7),)))
        store.add(campaign(board, (sample(DECODE, decode=9),), outcome="failed"))
        store.add(replace(campaign(board, (sample(DECODE, decode=11),)), source="llama-bench"))
        store.add(campaign(replace(board, model="Another board"), (sample(DECODE, decode=13),)))
    found = last_speeds(database, SHA, NAME, board)
    assert found is not None
    assert (found.campaign, found.prefill, found.decode) == (wanted, None, pytest.approx(7))


def test_what_nobody_measured_is_none_and_nothing_is_made(database: Path, board: Board) -> None:
    assert last_speeds(database, SHA, NAME, board) is None
    assert not database.exists()
    with Store.open(database) as store:
        store.add(campaign(board, (sample(DECODE, decode=5),)))
    assert last_speeds(database, SHA, "llama.cpp/gpu", board) is None
    assert last_speeds(database, "cd" * 32, NAME, board) is None
    assert last_speeds(database, "", NAME, board) is None


def test_a_campaign_of_several_models_counts_too(database: Path, board: Board) -> None:
    single = campaign(board, (sample(DECODE, decode=5),))
    (placement,), name = single.placements, f"{NAME} with m.gguf"
    placement = replace(placement, name=name, model={**placement.model, "file": "m.gguf"})
    with Store.open(database) as store:
        store.add(
            replace(single, placements=(placement,), runs=tuple(replace(run, placement=name) for run in single.runs))
        )
    found = last_speeds(database, SHA, NAME, board)
    assert found is not None
    assert found.decode == pytest.approx(5)


def test_a_database_of_before_imports_is_read_as_it_is(database: Path, board: Board) -> None:
    with Store.open(database) as store:
        store.add(campaign(board, (sample(DECODE, decode=5),)))
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("ALTER TABLE campaigns DROP COLUMN imported")
        db.execute("PRAGMA user_version = 2")
    found = last_speeds(database, SHA, NAME, board)
    assert found is not None
    assert found.decode == pytest.approx(5)


def test_another_programs_file_is_refused(database: Path, board: Board) -> None:
    database.write_bytes(b"no database at all")
    with pytest.raises(StoreError):
        last_speeds(database, SHA, NAME, board)

"""What bench says about its estimate: nothing where they agree, and the likely cause where they are far apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.board.chips import chips
from trilithon.board.snapshot import Board, read_board
from trilithon.estimate.answer import estimates
from trilithon.estimate.compared import far_from_estimate
from trilithon.estimate.local import measured_shift
from trilithon.estimate.subjects.subject import subject_of
from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample, Test
from trilithon.models.store.model_store import ModelStore
from trilithon.results.store.database import Store

CHIP = "RK3588"
MODELS = {"Qwen2.5 1.5B": 1_543_714_304, "Llama 3.2 1B": 1_235_814_400, "tiny": 100_000}


@pytest.fixture
def board() -> Board:
    return replace(read_board(), chip=CHIP, big_cpus=(4, 5, 6, 7))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def estimated(name: str, tmp_path: Path) -> tuple[float, float]:
    """Decode and prefill of a stranger's board, in tokens per second."""
    with ModelStore(tmp_path / "models") as store:
        subject = subject_of(name.replace(" ", "-"), store)
    (row,) = estimates(subject, [chips()[CHIP]], engine="llama.cpp", quantization="Q4_K_M")
    return row.decode.value, row.prefill.value


def measured(database: Path, board: Board, name: str, decode: float, prefill: float, **changes: Any) -> Campaign:
    """Kept in the database."""
    sha256 = f"{[*MODELS].index(name) + 1:02x}" * 32
    record = PlacementRecord(
        name="llama.cpp/cpu",
        engine="llama.cpp",
        build="wheel",
        build_version="1",
        unit="cpu",
        model={"name": name, "sha256": sha256, "parameters": MODELS[name], "quantization": "Q4_K_M"},
        settings={"threads": 4},
        must_match=board.must_match() | {"file": sha256, "memory clock governor": "none"},
    )
    record = replace(record, **{key: {**getattr(record, key), **value} for key, value in changes.items()})
    samples = (
        Sample(
            test=Test(kind="pp", prompt_tokens=512),
            started_ns=0,
            finished_ns=1,
            prompt_evaluated=512,
            prompt_ns=round(512e9 / prefill),
        ),
        Sample(
            test=Test(kind="tg", generated_tokens=128),
            started_ns=0,
            finished_ns=1,
            decode_steps=128,
            decode_ns=round(128e9 / decode),
        ),
    )
    run = Run(placement=record.name, round=0, outcome="finished", started_ns=0, finished_ns=1, samples=samples)
    campaign = Campaign(
        id=0,
        started="2026-11-30T10:00:00+00:00",
        status="finished",
        source="trilithon",
        version="1",
        board={"chip": CHIP},
        plan={},
        placements=(record,),
        runs=(run,),
    )
    with Store.open(database) as store:
        return store.campaign(store.add(campaign))


def test_what_agrees_is_not_told(database: Path, board: Board, tmp_path: Path) -> None:
    campaign = measured(database, board, "Qwen2.5 1.5B", *estimated("Qwen2.5 1.5B", tmp_path))
    assert [*far_from_estimate(campaign, database, board, CHIP)] == []


@pytest.mark.parametrize(
    ("decode", "prefill", "changes", "words"),
    [
        (2.5, 1, {"must_match": {"memory clock governor": "dmc_ondemand"}}, "clock, whose governor is dmc_ondemand"),
        (2.5, 1, {}, "other programs, heat"),
        (1, 3, {}, "dot products or repacked weights"),
        (2.5, 1, {"settings": {"threads": 1}}, "it had 1 threads, and there are 4 fast cores"),
        (0.3, 1, {}, "faster than such machines"),
    ],
)
def test_the_likely_cause(
    database: Path, board: Board, tmp_path: Path, decode: float, prefill: float, changes: Any, words: str
) -> None:
    speeds = estimated("Qwen2.5 1.5B", tmp_path)
    campaign = measured(database, board, "Qwen2.5 1.5B", speeds[0] / decode, speeds[1] / prefill, **changes)
    (line,) = far_from_estimate(campaign, database, board, CHIP)
    assert line.startswith(f"llama.cpp/cpu: {'decode' if decode != 1 else 'prefill'} ")
    assert words in line


def test_campaigns_of_other_models_are_the_measure(database: Path, board: Board, tmp_path: Path) -> None:
    """A board that is slower than others in everything is not called slow each time."""
    for name in ("Llama 3.2 1B", "Qwen2.5 1.5B"):
        decode, prefill = estimated(name, tmp_path)
        campaign = measured(database, board, name, decode / 2.5, prefill)
    assert [*far_from_estimate(campaign, database, board, CHIP)] == []
    assert measured_shift(database, board, CHIP)["llama.cpp", "decode"] == pytest.approx(0.9, abs=0.1)


def test_a_model_that_estimates_are_not_made_for(database: Path, board: Board) -> None:
    assert [*far_from_estimate(measured(database, board, "tiny", 900, 9000), database, board, CHIP)] == []

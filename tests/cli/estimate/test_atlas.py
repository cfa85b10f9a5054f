"""`trilithon atlas`: published rows, and those of this machine's campaigns, to keep and to send."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.main import run
from trilithon.estimate.local_atlas import as_csv, rows_of_campaign
from trilithon.estimate.rows import COLUMNS, atlas, read_rows
from trilithon.estimate.training import training_rows
from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.store.database import Store

BOARD = {"chip": "RK3588", "model": "Orange Pi 5 Plus"}
TESTS = {
    "pp": Test(kind="pp", prompt_tokens=512),
    "tg": Test(kind="tg", generated_tokens=128),
    "deep": Test(kind="tg", generated_tokens=128, depth=4096),
    "question": Test(kind="question", question="Why?"),
}


def placement(name: str, engine: str, unit: str, quantization: str, **changes: Any) -> PlacementRecord:
    model = {"name": "Qwen2.5 1.5B Instruct", "parameters": 1_543_714_304, "quantization": quantization}
    match = {"memory clock governor": "dmc_ondemand", "top clocks": "cpu4-7 2256 MHz, memory 2112 MHz"}
    record = PlacementRecord(
        name=name,
        engine=engine,
        build="b",
        build_version="1.2.3" if engine == "rkllm" else "b6000",
        unit=unit,
        model=model,
        settings={"threads": 4, "cpus": [4, 5, 6, 7], "kv_type_k": "f16"},
        must_match=match,
    )
    return replace(record, **changes)


def sample(test: Test, rate: float) -> Sample:
    tokens = test.prompt_tokens or test.generated_tokens or 10
    nanoseconds = round(tokens / rate * 1e9)
    if test.kind == "pp":
        return Sample(test=test, started_ns=0, finished_ns=1, prompt_evaluated=tokens, prompt_ns=nanoseconds)
    return Sample(test=test, started_ns=0, finished_ns=1, decode_steps=tokens, decode_ns=nanoseconds)


def campaign(records: Sequence[PlacementRecord], **changes: Any) -> Campaign:
    rates = {"pp": 40.0, "tg": 9.0, "deep": 7.0, "question": 9.0}
    runs = tuple(
        Run(
            placement=record.name,
            round=number,
            outcome="finished",
            started_ns=number,
            finished_ns=number + 1,
            samples=tuple(sample(TESTS[kind], rate + number) for kind, rate in rates.items()),
        )
        for number in range(3)
        for record in records
    )
    made = Campaign(
        id=0,
        started="2026-11-30T10:00:00+00:00",
        status="finished",
        source="trilithon",
        version="0.1.0",
        board=BOARD,
        plan={},
        placements=tuple(records),
        runs=runs,
    )
    return replace(made, **changes)


CPU = placement("llama.cpp/cpu", "llama.cpp", "cpu", "Q4_K_M")
NPU = placement("rkllm/npu", "rkllm", "npu", "w8a8")


@pytest.fixture
def keep(home: Path) -> Any:
    def add(made: Campaign) -> int:
        with Store.open(home / "data" / "trilithon" / "results.sqlite") as store:
            return store.add(made)

    return add


def test_by_model_chip_and_engine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["atlas", "qwen2.5-1.5b", "--chip", "rk3588", "--engine", "rkllm", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and {row["chip"] for row in rows} == {"RK3588"}
    assert all(row["engine"].startswith("RKLLM") and row["address"].startswith("https://") for row in rows)
    assert run(["atlas", "list", "qwen2.5-1.5b", "--chip", "rk3588", "--engine", "rkllm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert run(["atlas", "no-such-model"]) == 0
    assert "no measurement" in capsys.readouterr().err
    assert run(["atlas", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(atlas())


def test_a_campaign_joins_the_atlas_here(keep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    number = keep(campaign([CPU, NPU]))
    for _ in range(2):  # again: its rows are replaced
        assert run(["atlas", "add", str(number)]) == 0
        assert capsys.readouterr().out.startswith("added 6 rows to ")
    assert run(["atlas", "qwen2.5-1.5b", "--chip", "orange pi 5 plus", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["source"] == "campaign 1"]
    assert [(row["engine"], row["prompt_tokens"], row["prefill_tps"], row["decode_tps"]) for row in rows] == [
        ("llama.cpp build b6000", 512, 41, None),
        ("llama.cpp build b6000", None, None, 10),
        ("llama.cpp build b6000", None, None, 8),
        ("RKLLM 1.2.3", 512, 41, None),
        ("RKLLM 1.2.3", None, None, 10),
        ("RKLLM 1.2.3", None, None, 8),
    ]
    assert rows[2]["notes"].startswith("3 runs; depth 4096; memory clock governor dmc_ondemand, at most 2112 MHz;")
    assert run(["atlas", "qwen2.5-1.5b"]) == 0
    assert "campaign 1 2026-11-30" in capsys.readouterr().out


def test_exported_rows_are_rows_of_the_atlas(keep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They fit the columns, and the fit takes them: nothing has to be written by hand but the source."""
    assert run(["atlas", "export"]) == 2
    assert "nothing was added yet" in capsys.readouterr().err
    number = keep(campaign([CPU, NPU]))
    assert run(["atlas", "export", str(number)]) == 0
    text = capsys.readouterr().out
    assert tuple(next(csv.reader(io.StringIO(text)))) == COLUMNS
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    rows = tuple(read_rows(path))
    assert {row.family.name for row in rows} == {"cpu", "vendor-npu"}
    assert [len(training_rows(rows, phase)) for phase in ("decode", "prefill")] == [4, 2]
    run(["atlas", "add", str(number)])
    capsys.readouterr()
    assert run(["atlas", "export"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (replace(CPU, quality=QualityRecord(verdict="broken", reference="x")), "broken answers"),
        (replace(CPU, must_match={"prefill build": "rkllm"}), "a handover"),
        (replace(CPU, settings={"speculation": "draft"}), "speculation"),
        (replace(CPU, engine="scripted"), "a stand-in"),
        (replace(CPU, unit="gpu", must_match={"simulated": "software renderer"}), "a software GPU"),
    ],
)
def test_what_says_nothing_of_a_speed_is_left_out(record: PlacementRecord, part: str) -> None:
    assert {row.engine for row in rows_of_campaign(campaign([record, NPU]))} == {"RKLLM 1.2.3"}, part


def test_notes_say_what_is_unusual() -> None:
    record = replace(
        CPU,
        model={**CPU.model, "name": "Qwen2.5 1.5B, synthetic: random weights", "synthetic": True},
        settings={"kv_type_k": "q8_0"},
    )
    (row, *_) = rows_of_campaign(campaign([record], board={"chip": "unknown", "model": "A PC\nwith words"}))
    assert (row.chip, row.board, row.model) == ("", "A PC with words", "Qwen2.5 1.5B")
    assert "random weights; q8_0 KV" in row.notes
    assert as_csv([row]).count("\n") == 2


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (campaign([CPU], source="llama-bench"), "imported from llama-bench"),
        (campaign([CPU], runs=()), "no finished pp or tg test"),
    ],
)
def test_what_is_no_measurement_is_refused(
    keep: Any, capsys: pytest.CaptureFixture[str], made: Campaign, words: str
) -> None:
    assert run(["atlas", "add", "7"]) == 2
    assert "nothing was measured here yet" in capsys.readouterr().err
    number = keep(made)
    for command in ("add", "export"):
        assert run(["atlas", command, str(number)]) == 2
        assert words in capsys.readouterr().err


def test_a_campaign_of_another_machine_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(home / "data" / "trilithon" / "results.sqlite") as store:
        number, _ = store.add_once(campaign([CPU]))
    for command in ("add", "export"):
        assert run(["atlas", command, str(number)]) == 2
        assert f"campaign {number} is imported" in capsys.readouterr().err


def test_a_file_that_somebody_broke(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "data" / "trilithon"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "atlas.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert run(["atlas"]) == 2
    error = capsys.readouterr().err
    assert "atlas.csv: no column" in error and error.count("\n") == 1

"""benchmarks/estimate.py --rows: each row of a file is judged, or refused with the reason."""

import csv
import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest

from trilithon.errors import UserError
from trilithon.estimate.predict import PHASES, fitted
from trilithon.estimate.rows import COLUMNS
from trilithon.estimate.training import residual, training_rows

GOOD = {
    "source": "somebody",
    "date": "2026-11-01",
    "soc": "RK3588",
    "engine": "llama.cpp",
    "unit": "cpu",
    "model": "Qwen3-4B",
    "quant": "Q4_K_M",
    "prompt_tokens": "512",
    "prefill_tps": "20",
    "decode_tps": "5",
}
REFUSED = [
    ({"model": "nobody-knows"}, "the size of the model is unknown; state params_b"),
    ({"quant": ""}, "no quantisation"),
    ({"quant": "Q9"}, "unknown quantisation"),
    ({"unit": "cpu+npu"}, "unit 'cpu+npu'; write one of"),
    ({"prefill_tps": "", "decode_tps": ""}, "no prefill or decode speed"),
    ({"prompt_tokens": "", "prefill_tps": "", "decode_tps": "", "ttft_ms": "9"}, "no prefill or decode speed"),
    ({"decode_tps": "12 t/s"}, "decode_tps '12 t/s' is not a positive number"),
    ({"prompt_tokens": "0"}, "prompt_tokens '0' is not a positive number"),
    ({"soc": ""}, "soc and board are empty"),
    ({"engine": " "}, "engine is empty"),
    ({"notes": "MTP draft model"}, "speculation"),
]
JUDGED: list[dict[str, str]] = [
    {},
    {"soc": "RK9999"},
    {"soc": "", "board": "a board (nobody knows it)"},
    {"model": "nobody-knows", "params_b": "7"},
    {"model": "nobody-knows-7b"},
    {"model": "x", "params_b": "1e-9"},
    {"model": "x", "params_b": "1e8"},
    {"model": "\N{GRINNING FACE} 30b-a3b"},
    {"unit": "NPU", "engine": "RKLLM 9.9"},
    {"unit": "npu", "engine": "exotic ("},
    {"unit": "hybrid", "engine": "exotic"},
    {"unit": "gpu"},
    {"decode_tps": "1e-300"},
    {"prompt_tokens": "1e8"},
    {"ttft_ms": "1e-200"},
    {"notes": f"depth {'9' * 400}"},
    {"date": "yesterday", "threads_or_cores": "99 cores"},
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("estimate")


def table(path: Path, changes: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "power_w"])
        writer.writeheader()
        writer.writerows(GOOD | change for change in changes)
        file.write("too,short\n")
    return path


def test_rows_are_judged_or_refused(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, float] = {}
    path = table(tmp_path / "rows.csv", [*JUDGED, *(change for change, _ in REFUSED)])
    rows = script.judgeable_rows(path, figures)
    assert figures == {"rows judged": len(JUDGED), "rows refused": len(REFUSED) + 1}
    refusals = capsys.readouterr().err.splitlines()
    for _, reason in REFUSED:
        assert any(reason in line and line.startswith("refused: ") for line in refusals), reason
    points = {phase: training_rows(rows, phase) for phase in PHASES}
    errors = {phase: [residual(point, fitted()[phase].effects) for point in points[phase]] for phase in PHASES}
    assert all(math.isfinite(error.error) for seen in errors.values() for error in seen)
    script.judge_others(errors, figures)
    assert figures["other decode, cpu other: rows"] == 1
    assert all(isinstance(value, int | float) for value in figures.values())


def test_a_file_without_a_good_row_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no row that can be judged; 2 were refused"):
        script.judgeable_rows(table(tmp_path / "rows.csv", [{"quant": ""}]), {})

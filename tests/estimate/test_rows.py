"""The rows of the atlas, and what is wrong with rows of others."""

from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.chips import chips
from trilithon.errors import UserError
from trilithon.estimate.rows import COLUMNS, atlas, family_of, read_rows, source_address, why_dropped
from trilithon.estimate.terms import case_of, decode_terms, machine_rates

GOOD = {
    "source": "somebody",
    "date": "2026-11-01",
    "soc": "RK3588",
    "engine": "llama.cpp",
    "unit": "cpu",
    "model": "Qwen3-4B",
    "quant": "Q4_K_M",
    "decode_tps": "7.5",
}


def test_every_row_of_the_atlas_is_a_point() -> None:
    assert len(atlas()) > 800
    for row in atlas():
        assert why_dropped(row) == ""
        assert source_address(row.source) or "found by search" not in row.source
        assert row.prefill_tps or row.decode_tps or row.ttft_ms or row.memory_mb
        assert not row.chip or row.chip in chips()
        case = case_of(row)
        assert case is not None, row
        assert case.size.exact, row.model
        assert machine_rates(row.machine), row.machine


def test_most_sources_have_an_address_and_all_have_a_date() -> None:
    assert all(source_address(row.source).startswith("https://") for row in atlas())
    assert all(row.date[:2] == "20" for row in atlas())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"decode_tps": "fast"}, "decode_tps"),
        ({"decode_tps": "-1"}, "decode_tps"),
        ({"decode_tps": "nan"}, "decode_tps"),
        ({"prompt_tokens": "inf"}, "prompt_tokens"),
        ({"unit": "tpu"}, "unit"),
        ({"model": ""}, "model is empty"),
        ({"source": ""}, "source is empty"),
        ({"soc": ""}, "soc and board"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, change: dict[str, str], word: str) -> None:
    path = _table(tmp_path, GOOD, GOOD | change)
    with pytest.raises(UserError, match=word) as refusal:
        list(read_rows(path))
    assert f"{path}:3" in str(refusal.value)


def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column source"):
        list(read_rows(tmp_path / "rows.csv"))
    (tmp_path / "rows.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(tmp_path / "missing.csv"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"notes": "MTP drafter n-max 3"}, "speculation"),
        ({"notes": "END-TO-END t/s"}, "end to end"),
        ({"threads_or_cores": "3 boards"}, "several boards"),
        ({"quant": ""}, "no quantisation"),
        ({}, ""),
    ],
)
def test_rows_that_are_no_points(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    (row,) = read_rows(_table(tmp_path, GOOD | change))
    assert why_dropped(row) == reason


def test_forks_share_a_family() -> None:
    assert family_of("rk-llama.cpp (somebody)", "npu").name == family_of("rk-llama.cpp", "npu").name
    assert family_of("RKLLM 1.3.0", "npu").name != family_of("rk-llama.cpp", "npu").name
    assert family_of("ggml-rocket (llama.cpp)", "npu").decode == "cpu"


def _table(folder: Path, *rows: dict[str, str]) -> Path:
    lines = [",".join(COLUMNS), *(",".join(row.get(name, "") for name in COLUMNS) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.csv"


def test_threads_count_where_cores_compute() -> None:
    row = next(row for row in atlas() if row.unit == "cpu" and row.chip == "RK3588" and row.decode_tps)
    products = {}
    for threads in ("2 threads", "4 threads", "8 threads"):
        case = case_of(replace(row, threads_or_cores=threads))
        assert case is not None
        products[threads] = decode_terms(case)[0][-1].seconds
    assert products["2 threads"] == 2 * products["4 threads"] == 2 * products["8 threads"]
    npu = next(row for row in atlas() if row.family.name == "fork-npu")
    case = case_of(replace(npu, threads_or_cores="8 threads"))
    assert case is not None and f"threads/all/npu/{case.place}" in case.shared
    assert all("compute" not in name for term in decode_terms(case)[0] for name in term.effects)


def test_chips_of_one_die_share_effects() -> None:
    row = next(row for row in atlas() if row.unit == "cpu" and row.chip == "RK3588" and row.decode_tps)
    effects = []
    for chip in ("RK3588", "RK3588S", "RK3582", "RK3576"):
        case = case_of(replace(row, chip=chip))
        assert case is not None
        effects.append({name for term in decode_terms(case)[0] for name in term.effects if "die" in name})
    assert effects[0] == effects[1] == effects[2] != set() and effects[3] == set()

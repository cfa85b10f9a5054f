"""`trilithon recommend`: only what fits and is fast enough, the best quality first."""

import json
from dataclasses import replace

import pytest

from trilithon.board.chips import chips
from trilithon.cli.estimate.recommend import _json, _lines
from trilithon.cli.main import run
from trilithon.estimate.recommend import SYSTEM_BYTES, TASKS, candidates, ranked, recommended
from trilithon.estimate.sizes import size_named


def test_every_candidate_is_a_known_model() -> None:
    for name, candidate in candidates().items():
        size = size_named(name)
        assert size is not None and size.exact
        assert size_named(candidate.pull) == size
        assert set(candidate.tasks) <= set(TASKS)
        assert candidate.sources and all(address.startswith("https://") for address in candidate.sources)
        assert (candidate.quality is None) == (candidate.benchmark is None)


def test_a_model_without_a_figure_comes_last_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    rows = recommended(chips()["RK3588"], task="chat", room=8 << 30, least=5, context=4096, shift={})
    plain = replace(rows[0], candidate=replace(rows[0].candidate, quality=None, benchmark=None))
    order = ranked([plain, *rows[1:]])
    assert order == [*rows[1:], plain]
    assert "no figure" in _lines(order)[len(order)] and "None" not in "\n".join(_lines(order))
    assert (_json(plain)["quality"], _json(plain)["benchmark"]) == (None, None)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("memory", "size_bytes"), [("2GB", 2 << 30), ("8GB", 8 << 30)])
def test_what_is_recommended_fits_and_is_fast(
    task: str, memory: str, size_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", "--task", task, "--chip", "rk3588", "--memory", memory, "--json"]
    assert run([*words, "--min-tokens-per-second", "5"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["memory_bytes"] + SYSTEM_BYTES <= size_bytes for row in rows)
    assert all(row["decode_tps"]["value"] >= 5 for row in rows)
    assert [row["quality"] for row in rows] == sorted((row["quality"] for row in rows), reverse=True)
    assert all(row["pull"].startswith("trilithon pull ") and row["sources"] for row in rows)


def test_nothing_fits_into_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recommend", "--chip", "rk3588", "--memory", "700MB"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "no model" in captured.err


def test_more_speed_leaves_fewer_models(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for least in ("1", "20"):
        words = ["recommend", "--chip", "rk3588", "--memory", "16GB", "--count", "50", "--json"]
        assert run([*words, "--min-tokens-per-second", least]) == 0
        counts.append(len(json.loads(capsys.readouterr().out)))
    assert counts[0] > counts[1]


def test_one_chip_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recommend", "--chip", "all"]) == 2
    assert "one chip" in capsys.readouterr().err

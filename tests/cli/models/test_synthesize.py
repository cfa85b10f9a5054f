import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic import architectures as module
from trilithon.models.synthetic.architectures import architectures, find_architecture
from trilithon.results.store.database import Store

Program = Callable[..., Any]

GOOD = "scripted/cpu:prefill=100000,decode=2000,seed=1"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more architecture: of the build of Qwen2.5, in a few megabytes."""
    model = find_architecture("qwen2.5-0.5b")
    tiny = replace(model, key="qwen2.5-0.1m", embedding=64, heads=4, layers=2, vocabulary=400, feed_forward=96)
    known = {**architectures(), tiny.key: replace(tiny, head_size=16)}
    monkeypatch.setattr(module, "architectures", lambda: known)


def test_a_file_where_the_user_wants_it(trilithon: Program, home: Path) -> None:
    done = trilithon("models", "synthesize", "qwen2.5:0.1m", "--quant", "q8_0", "--output", home / "s.gguf")
    assert (done.code, done.stdout) == (0, f"{home / 's.gguf'}\n")
    assert "writing 100%" in done.stderr
    assert f"trilithon bench {home / 's.gguf'}" in done.stderr
    assert read_model_file(home / "s.gguf", home).synthetic
    again = trilithon("models", "synthesize", "qwen2.5:0.1m", "--output", home / "s.gguf")
    assert (again.code, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr


def test_the_architectures_as_json(trilithon: Program) -> None:
    rows = json.loads(trilithon("models", "synthesize", "--json").stdout)
    known = {row["key"]: row for row in rows}
    assert known["qwen2.5-0.5b"]["parameters"] == 494_032_768
    assert "Q4_K_M" in known["qwen2.5-0.5b"]["quantizations"]
    done = trilithon("models", "synthesize", "qwen2.5-0.1m", "--json")
    assert (done.code, done.stderr.count("\n")) == (2, 1)


def test_a_model_in_the_store_says_everywhere_that_it_is_synthetic(trilithon: Program) -> None:
    done = trilithon("models", "synthesize", "qwen2.5-0.1m")
    assert (done.code, done.stdout) == (0, "synthetic/qwen2.5:0.1m-f16\n")
    (row,) = json.loads(trilithon("list", "--json").stdout)
    assert (row["name"], row["synthetic"], row["quantizations"]) == ("synthetic/qwen2.5:0.1m-f16", True, ["F16"])
    assert "synthetic" in trilithon("list").stdout
    assert "random weights" in trilithon("show", "synthetic/qwen2.5:0.1m-f16").stdout


def test_its_speed_is_measured_and_its_quality_is_not(trilithon: Program, home: Path) -> None:
    path = home / "s.gguf"
    trilithon("models", "synthesize", "qwen2.5-0.1m", "--output", path)
    done = trilithon("bench", path, "-p", "16", "-n", "8", "-r", "1", "--test", "tg", "--placement", GOOD)
    assert done.code == 0
    assert "the model is synthetic: its weights are random, so quality was not checked" in done.stderr
    with Store.open(home / "data/trilithon/results.sqlite") as store:
        (placement,) = store.campaign(1).placements
    assert placement.quality is not None
    assert (placement.quality.verdict, placement.quality.divergence) == ("unknown", None)
    assert placement.model["synthetic"] is True
    refused = trilithon("bench", path, "--questions", "standard", "--placement", GOOD)
    assert (refused.code, refused.stderr.count("\n")) == (2, 1)
    assert "its weights are random, and so are its answers; leave --questions out" in refused.stderr


@pytest.mark.parametrize("side", ["model", "reference"])
def test_quality_against_another_file_is_refused(trilithon: Program, home: Path, tiny: Path, side: str) -> None:
    path = home / "s.gguf"
    trilithon("models", "synthesize", "qwen2.5-0.1m", "--output", path)
    model, reference = (path, tiny) if side == "model" else (tiny, path)
    done = trilithon("bench", model, "--reference", reference, "--test", "tg", "-r", "1", "--placement", GOOD)
    assert done.code == 2
    assert done.stderr.splitlines()[-1] == (
        "error: s.gguf is synthetic: its weights are random, and quality cannot be compared with another file's; "
        "leave --reference out to measure its speed"
    )


def test_without_a_name_the_known_ones_are_listed(trilithon: Program) -> None:
    done = trilithon("models", "synthesize")
    assert done.code == 0
    assert "qwen2.5-0.5b    0.49 billion parameters, 24 layers" in done.stdout
    assert "q4_k_m" in done.stderr


@pytest.mark.parametrize("words", [("gpt-5",), ("qwen2.5-0.1m", "--quant", "iq1_s")])
def test_what_is_unknown_is_one_line(trilithon: Program, words: tuple[str, ...]) -> None:
    done = trilithon("models", "synthesize", *words)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert re.search("; (there are|choose one of) ", done.stderr)

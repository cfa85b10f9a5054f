"""The line about a model that was fetched, and the columns of a list: on a board that is known."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.board import snapshot
from trilithon.board.snapshot import read_board
from trilithon.cli.models.estimated import estimate_line, estimates_of
from trilithon.estimate.answer import SpeedEstimate
from trilithon.models.names import ModelName, parse_reference
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.settings import load_configuration


@pytest.fixture
def store(home: Path) -> Any:
    with ModelStore.open(load_configuration()) as opened:
        yield opened


def on(chip: str, monkeypatch: pytest.MonkeyPatch, memory: int = 8 << 30) -> None:
    board = replace(read_board(), chip=chip, memory_bytes=memory)
    monkeypatch.setattr(snapshot, "read_board", lambda: board)


def manifest(name: str, *files: tuple[str, float, str], platform: str = "") -> Manifest:
    """`files` are names, gigabytes and quantisations of weights that are not there: estimates open no file."""
    stored = [
        StoredFile(
            role="weights",
            digest=f"{number:064x}",
            size_bytes=round(gigabytes * 1e9),
            name=file,
            format="rkllm" if file.endswith(".rkllm") else "gguf",
            quantization=quantization,
            target_platform=platform,
        )
        for number, (file, gigabytes, quantization) in enumerate(files)
    ]
    parsed = parse_reference(name)
    assert isinstance(parsed, ModelName)
    return Manifest(name=parsed, files=tuple(stored), source="", created=now())


def estimated(*manifests: Manifest) -> dict[str, tuple[SpeedEstimate, bool | None]]:
    return dict(estimates_of(manifests, load_configuration()))


def test_models_of_a_list_are_known_by_names_and_sizes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("RK3588", monkeypatch)
    shards = [(f"qwen2.5-7b-instruct-q4_k_m-0000{part}-of-00002.gguf", 2.34, "Q4_K_M") for part in (1, 2)]
    rows = estimated(
        manifest("qwen2.5:7b", ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", 4.68, "Q4_K_M")),
        manifest("shards", *shards),
        manifest("fine-tune:latest", ("model.gguf", 4.68, "Q4_K_M")),
        # The name says another size than the file has.
        manifest("mine:0.5b", ("model.gguf", 4.68, "Q4_K_M")),
        manifest("large:70b", ("large.gguf", 42.5, "Q4_K_M")),
    )
    decode = {name: row.decode.value for name, (row, _) in rows.items()}
    assert {name for name, (_, fits) in rows.items() if not fits} == {"large:70b"}
    for name in ("shards:latest", "fine-tune:latest", "mine:0.5b"):
        assert decode[name] == pytest.approx(decode["qwen2.5:7b"], rel=0.1)
    assert 2 < decode["qwen2.5:7b"] < 5  # docs/estimate.md: RK3588, four fast cores
    assert decode["large:70b"] < decode["qwen2.5:7b"] / 5


def test_of_some_models_a_list_knows_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("RK3588", monkeypatch)
    converted = manifest("there:1.5b", ("there.rkllm", 1.9, "w8a8"), platform="RK3588")
    assert estimated(
        manifest("tiny", ("tiny.gguf", 0.0003, "F16")),
        manifest("odd", ("odd.gguf", 1.0, "Q9_X")),
        manifest("vectors", ("nomic-embed-text-v1.5.gguf", 0.3, "F16")),
        manifest("elsewhere:1.5b", ("elsewhere.rkllm", 1.9, "w4a16"), platform="RK3576"),
        manifest("none"),
        converted,
    ).keys() == {"there:1.5b"}
    ((row, _),) = estimated(converted).values()
    assert (row.engine, row.unit) == ("rkllm", "npu")
    on("Intel N97", monkeypatch)  # nothing is known of it, and nothing was measured
    assert estimated(converted) == {}


def test_a_list_has_columns_only_with_a_basis(
    trilithon: Callable[..., Any], store: ModelStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store.local.root / "manifests" / "registry.ollama.ai" / "library" / "qwen2.5" / "1.5b.json"
    place.parent.mkdir(parents=True)
    place.write_text(manifest("qwen2.5:1.5b", ("m.gguf", 1.1, "Q4_K_M")).to_json())
    on("Intel N97", monkeypatch)
    assert "tok/s" not in trilithon("list").stdout
    (row,) = json.loads(trilithon("list", "--json").stdout)
    assert row["estimate"] is None and "fits" not in row
    on("RK3588", monkeypatch, memory=1 << 30)
    head, line = trilithon("list").stdout.splitlines()
    assert re.split("  +", head)[:6] == ["name", "size", "quant", "format", "tok/s here", "memory"]
    assert re.search(r"[\d.]+ \([\d.]+–[\d.]+\)  1.3–2.3 GiB \(does not fit\)  ", line)
    (row,) = json.loads(trilithon("list", "--json").stdout)
    assert row["estimate"]["fits"] is False
    assert row["estimate"]["decode_tps"]["within_80"][0] < row["estimate"]["decode_tps"]["value"]
    russian = trilithon("--lang", "ru", "list").stdout
    assert "токен/с" in russian and "не помещается" in russian


def test_a_board_that_is_known(store: ModelStore, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("RK3588", monkeypatch)
    text = estimate_line(str(tiny), store, load_configuration())
    assert text.startswith("estimated here: decode ")
    assert text.endswith(f"to measure: trilithon bench {tiny} --placement llama.cpp/cpu")


def test_a_converted_model_is_estimated_on_its_engine(
    store: ModelStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("RK3588", monkeypatch)
    path = home / "qwen2.5-1.5b.rkllm"
    path.write_bytes(b"RKLLM")
    assert "--placement rkllm/npu" in estimate_line(str(path), store, load_configuration())


@pytest.mark.parametrize("pooling", [1, 4])
def test_of_what_bench_refuses_nothing_is_said(
    store: ModelStore, home: Path, monkeypatch: pytest.MonkeyPatch, pooling: int
) -> None:
    on("RK3588", monkeypatch)
    path = home / "vectors.gguf"
    write_tiny_model(path, pooling=pooling)
    assert estimate_line(str(path), store, load_configuration()) == ""


def test_nothing_is_said_without_knowledge(store: ModelStore, tiny: Path, home: Path) -> None:
    """A machine of which no rate is known, and a file that is none."""
    assert estimate_line(str(tiny), store, load_configuration()) == ""
    broken = home / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert estimate_line(str(broken), store, load_configuration()) == ""

"""The line about a model that was fetched: on a board that is known, or after a campaign."""

from pathlib import Path
from typing import Any

import pytest

from trilithon.board.chips import chips
from trilithon.cli.models import estimated
from trilithon.cli.models.estimated import estimate_line
from trilithon.models.store.model_store import ModelStore
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.settings import load_configuration


@pytest.fixture
def store(home: Path) -> Any:
    with ModelStore.open(load_configuration()) as opened:
        yield opened


def on(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimated, "chosen_chips", lambda _: (chips()[chip],))


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

"""Which placements run a file, and the file that some placements can run."""

from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.limits.cgroups import Limits
from trilithon.board.snapshot import read_board
from trilithon.engines.placing import Suitability, suits_placements, what_runs
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.store.manifest import StoredFile
from trilithon.settings import Configuration, load_configuration


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


def refusals(file: ModelFile, memory_bytes: int | None = 1 << 34, limits: Limits | None = None) -> dict[str, str]:
    board = replace(read_board(), memory_bytes=memory_bytes, limits=limits or Limits())
    verdicts = what_runs(file, board, load_configuration())
    assert verdicts == sorted(verdicts, key=lambda verdict: bool(verdict.refusal))
    assert all(isinstance(verdict, Suitability) and "\n" not in verdict.refusal for verdict in verdicts)
    return {verdict.placement: verdict.refusal for verdict in verdicts}


@pytest.mark.usefixtures("home")
def test_the_engine_of_the_wheel_runs_a_gguf_and_the_others_say_why_not(file: ModelFile) -> None:
    reasons = refusals(file)
    runs = [name for name, refusal in reasons.items() if not refusal]
    assert any(name.startswith("llama.cpp") and name.endswith("/cpu") for name in runs)
    assert "rkllm" in reasons["rkllm"]
    assert not any(name.startswith("scripted") for name in reasons)


@pytest.mark.usefixtures("home")
def test_an_rkllm_file_is_not_for_llama_cpp(file: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + bytes(100))
    reasons = refusals(read_model_file(path, tmp_path))
    assert all(refusal for refusal in reasons.values())


@pytest.mark.usefixtures("home")
def test_a_model_larger_than_the_memory_runs_nowhere(file: ModelFile) -> None:
    reasons = refusals(file, memory_bytes=100_000)
    assert all(reasons.values())
    assert any("this machine has 97.7 KiB; take a smaller quantization" in refusal for refusal in reasons.values())
    assert not all(refusals(file, memory_bytes=None).values())
    assert all(refusals(file, limits=Limits(memory_bytes=100_000)).values())


def weights(name: str) -> StoredFile:
    form = "rkllm" if name.endswith("rkllm") else "gguf"
    return StoredFile(role="weights", digest="a" * 64, size_bytes=1, name=name, format=form)  # type: ignore[arg-type]


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


def test_what_every_placement_could_run_suits(configuration: Configuration) -> None:
    suits = suits_placements(["llama.cpp/cpu", "llama.cpp/cpu:t=2"], configuration)
    assert suits(weights("m.gguf"))
    assert not suits(weights("m.rkllm"))
    assert not suits_placements(["llama.cpp/cpu+rkllm/npu"], configuration)(weights("m.gguf"))


def test_by_default_what_something_here_could_run(configuration: Configuration) -> None:
    assert suits_placements([], configuration)(weights("m.gguf"))


def test_a_placement_that_is_none_is_refused_at_once(configuration: Configuration) -> None:
    with pytest.raises(PlacementError, match="unknown engine"):
        suits_placements(["other/cpu"], configuration)(weights("m.gguf"))
    with pytest.raises(PlacementError, match="write ENGINE/UNIT"):
        suits_placements(["cpu"], configuration)

from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.snapshot import read_board
from trilithon.engines.suitability import Suitability, what_runs
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.settings import load_configuration


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


def verdicts(file: ModelFile, memory_bytes: int | None = 1 << 34) -> dict[str, str]:
    board = replace(read_board(), memory_bytes=memory_bytes)
    found = what_runs(file, board, load_configuration())
    assert found == sorted(found, key=lambda each: bool(each.refusal))
    assert all(isinstance(each, Suitability) and "\n" not in each.refusal for each in found)
    return {each.placement: each.refusal for each in found}


@pytest.mark.usefixtures("home")
def test_the_engine_of_the_wheel_runs_a_gguf_and_the_others_say_why_not(file: ModelFile) -> None:
    found = verdicts(file)
    runs = [name for name, refusal in found.items() if not refusal]
    assert any(name.startswith("llama.cpp") and name.endswith("/cpu") for name in runs)
    assert "rkllm" in found["rkllm"]
    assert not any(name.startswith("scripted") for name in found)


@pytest.mark.usefixtures("home")
def test_an_rkllm_file_is_not_for_llama_cpp(file: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + bytes(100))
    found = verdicts(read_model_file(path, tmp_path))
    assert all(refusal for refusal in found.values())


@pytest.mark.usefixtures("home")
def test_a_model_larger_than_the_memory_runs_nowhere(file: ModelFile) -> None:
    found = verdicts(file, memory_bytes=100_000)
    assert all(found.values())
    assert any("this machine has 97.7 KiB; take a smaller quantization" in refusal for refusal in found.values())
    assert not all(verdicts(file, memory_bytes=None).values())

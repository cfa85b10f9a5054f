from pathlib import Path

import pytest

from trilithon.engines.choice import suits_placements
from trilithon.errors import PlacementError
from trilithon.models.store.manifest import StoredFile
from trilithon.settings import Configuration


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

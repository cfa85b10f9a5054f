import re
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import StartError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.memory_need import bytes_needed, refuse_without_room


@pytest.fixture
def placement(tiny: Path, tmp_path: Path) -> Placement:
    file = read_model_file(tiny, tmp_path / "cache")
    build = ScriptedEngine().builds()[0]
    return Placement(name="a/cpu", file=file, build=build, unit="cpu", settings=Settings(context=1000))


def with_memory(root: Path, available: str) -> Machine:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available}\n")
    return Machine(root)


def test_weights_and_caches_are_counted(placement: Placement) -> None:
    # The tiny model: 2 layers, 2 KV heads of 16 numbers, keys and values of 2 bytes.
    cache = 1000 * 2 * 2 * 2 * 16 * 2
    assert bytes_needed(placement) == placement.file.size_bytes + cache
    two_slots = replace(placement, settings=replace(placement.settings, slots=2))
    assert bytes_needed(two_slots) == placement.file.size_bytes + 2 * cache
    npu = replace(placement, name="a/npu", unit="npu")
    assert bytes_needed(replace(placement, prefill=npu)) == 2 * (placement.file.size_bytes + cache)
    assert bytes_needed(replace(placement, prefill=placement)) == placement.file.size_bytes + 2 * cache


def test_what_does_not_fit_is_refused_in_one_line(placement: Placement, tmp_path: Path) -> None:
    both = replace(placement, name="a/npu+a/cpu", prefill=replace(placement, unit="npu"))
    needed_kb = bytes_needed(both) // 1024 + 1
    refuse_without_room(both, with_memory(tmp_path, f"{needed_kb} kB"))
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {needed_kb - 2} kB\n")
    with pytest.raises(StartError, match=re.escape("a/npu+a/cpu needs about ")) as caught:
        refuse_without_room(both, Machine(tmp_path))
    assert "\n" not in str(caught.value) and caught.value.advice


@pytest.mark.parametrize("text", ["", "much", "-5 kB"])
def test_unknown_memory_refuses_nothing(placement: Placement, tmp_path: Path, text: str) -> None:
    refuse_without_room(placement, with_memory(tmp_path, text))

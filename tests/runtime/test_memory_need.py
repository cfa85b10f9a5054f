import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import StartError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.memory_need import (
    bytes_needed,
    limit_while_loading,
    refuse_without_room,
    spare_while_running,
    stack_bytes,
)


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


def most_while_loading(placement: Placement) -> int:
    limit = limit_while_loading(placement)
    assert limit is not None
    return limit


def test_a_vision_encoder_may_be_loaded_with_the_first_picture(placement: Placement, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder.rknn"
    encoder.write_bytes(bytes(1 << 20))
    sees = replace(placement, file=replace(placement.file, vision_encoder=encoder))
    for limit in (most_while_loading, spare_while_running):
        assert limit(sees) - limit(placement) == (2 << 20) + (2 << 30)


def test_the_logits_of_a_micro_batch_are_counted(placement: Placement) -> None:
    wide = replace(placement, settings=replace(placement.settings, micro_batch=1000))
    rows = 1000 - placement.settings.micro_batch
    assert most_while_loading(wide) - most_while_loading(placement) >= 2 * 4 * rows * (
        read_gguf(placement.file.path).vocabulary or 0
    )


@pytest.mark.parametrize(("soft", "one"), [(1 << 30, 1 << 30), (1 << 20, 8 << 20), (resource.RLIM_INFINITY, 8 << 20)])
def test_stacks_are_as_large_as_ulimit_says(monkeypatch: pytest.MonkeyPatch, soft: int, one: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert stack_bytes() == 8 * one

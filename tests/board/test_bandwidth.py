import os
from pathlib import Path

import pytest

from trilithon.board.bandwidth import buffer_bytes, last_level_cache_bytes, measure_bandwidth
from trilithon.board.sysfs import Machine
from trilithon.errors import UserError


def machine_with(root: Path, caches: dict[str, tuple[int, str, str]], available_kib: int | None) -> Machine:
    """`caches`: "cpu0/index3" → level, size, shared_cpu_list."""
    for place, (level, size, shared) in caches.items():
        cpu, index = place.split("/")
        folder = root / "sys/devices/system/cpu" / cpu / "cache" / index
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
        (folder / "shared_cpu_list").write_text(f"{shared}\n")
    (root / "proc").mkdir(parents=True)
    if available_kib is not None:
        (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kib} kB\n")
    return Machine(root)


def test_shared_caches_count_once_and_only_the_last_level(tmp_path: Path) -> None:
    caches = {
        "cpu0/index2": (2, "512K", "0"),
        "cpu0/index3": (3, "3072K", "0-1"),
        "cpu1/index3": (3, "3072K", "0-1"),
        "cpu2/index3": (3, "1024K", "2"),
    }
    assert last_level_cache_bytes(machine_with(tmp_path, caches, None)) == 4 << 20


def test_a_kernel_that_names_no_caches(tmp_path: Path) -> None:
    assert last_level_cache_bytes(machine_with(tmp_path, {}, None)) == 4 << 20


def test_buffers_are_beyond_the_cache_and_within_the_memory(tmp_path: Path) -> None:
    large = machine_with(tmp_path / "a", {"cpu0/index3": (3, "32768K", "0-7")}, 16 << 20)
    assert buffer_bytes(2, large) * 2 == 128 << 20
    assert buffer_bytes(64, large) == 16 << 20
    small = machine_with(tmp_path / "b", {"cpu0/index3": (3, "32768K", "0-7")}, 512 << 10)
    assert buffer_bytes(2, small) * 2 == 64 << 20
    tiny = machine_with(tmp_path / "c", {}, 16 << 10)
    assert buffer_bytes(4, tiny) == 4 << 20


@pytest.mark.parametrize("garbled", ["² kB", "9" * 5000 + " kB", "kB", "-1 kB"])
def test_garbled_memory_is_taken_for_a_small_one(tmp_path: Path, garbled: str) -> None:
    machine = machine_with(tmp_path, {}, None)
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {garbled}\n")
    assert buffer_bytes(1, machine) == buffer_bytes(1, Machine(tmp_path / "none"))


def test_measures_this_machine_and_leaves_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    rate = measure_bandwidth(seconds=0.1)
    assert 1e8 < rate < 5e12
    assert os.sched_getaffinity(0) == before


def test_one_cpu_is_enough() -> None:
    assert measure_bandwidth([min(os.sched_getaffinity(0))], seconds=0.05) > 1e8


def test_refuses_cpus_that_are_not_there() -> None:
    with pytest.raises(UserError, match="CPUs 99999: this process may use"):
        measure_bandwidth([99999])
    with pytest.raises(UserError, match=r"\(none\)"):
        measure_bandwidth([])

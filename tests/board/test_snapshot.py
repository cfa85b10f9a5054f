import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.board.snapshot import Board, DeviceNode, read_board
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]


def test_rk3588_vendor(plant: Plant) -> None:
    board = read_board(plant("rk3588_vendor"))
    assert board.describe() == "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43"
    little, big = board.clusters
    assert (little.cpus, little.kind, little.max_khz, little.capacity) == ((0, 1, 2, 3), "little", 1_800_000, 530)
    assert (big.cpus, big.kind, big.max_khz, big.governor) == ((4, 5, 6, 7), "big", 2_352_000, "ondemand")
    assert board.big_cpus == (4, 5, 6, 7)
    assert board.gpu is not None
    assert (board.gpu.driver, board.gpu.name) == ("kbase", "Mali-G610 MP4")
    assert board.npu is not None
    assert (board.npu.driver, board.npu.version, board.npu.cores) == ("rknpu", "0.9.8", 3)
    assert board.npu.nodes == (DeviceNode("/dev/dri/card1", True), DeviceNode("/dev/dri/renderD129", True))
    memory = board.clock("memory")
    assert memory is not None
    assert (memory.current_hz, memory.max_hz, memory.governor) == (528_000_000, 2_112_000_000, "dmc_ondemand")
    assert (board.open_files_soft, board.open_files_hard) == (1024, 1_048_576)
    assert board.swap_used_bytes == 0
    assert not board.in_container
    assert board.must_match() == {
        "board": "Orange Pi 5 Plus",
        "chip": "RK3588",
        "kernel": "6.1.43-rockchip-rk3588",
        "governors": "cpu0-3 ondemand, cpu4-7 ondemand",
        "top clocks": "cpu0-3 1800 MHz, cpu4-7 2352 MHz, memory 2112 MHz",
        "memory clock governor": "dmc_ondemand",
    }


def test_rk3588_mainline(plant: Plant) -> None:
    board = read_board(plant("rk3588_mainline"))
    assert board.chip == "RK3588"
    assert board.gpu is not None
    assert board.gpu.driver == "panthor"
    assert [node.path for node in board.gpu.nodes] == ["/dev/dri/renderD128"]
    assert board.npu is not None
    assert (board.npu.driver, board.npu.version) == ("rocket", None)
    assert [node.path for node in board.npu.nodes] == ["/dev/accel/accel0"]
    assert board.clock("memory") is None
    assert board.big_cpus == (4, 5, 6, 7)


def test_rk3566(plant: Plant) -> None:
    board = read_board(plant("rk3566"))
    assert board.describe() == "Quartz64 Model A · RK3566 · 4×Cortex-A55 · 1.9 GiB · Linux 5.10.160"
    (cluster,) = board.clusters
    assert cluster.kind == "all"
    assert board.big_cpus == (0, 1, 2, 3)
    assert board.npu is not None
    assert [node.path for node in board.npu.nodes] == ["/dev/rknpu", "/dev/dma_heap/cma", "/dev/dma_heap/system"]
    assert board.swap_used_bytes == 300 * 2**20


def test_pc(plant: Plant) -> None:
    board = read_board(plant("pc_x86_64"))
    assert board.describe() == "PRIME X570-P · AMD Ryzen 7 5800X · 8 cores, 16 threads · 31 GiB · Linux 6.12.9"
    assert board.big_cpus == tuple(range(8))
    assert board.npu is None
    assert board.gpu is not None
    assert board.gpu.driver == "amdgpu"


def test_a_pc_s_efficiency_cores_are_little(plant: Plant) -> None:
    board = read_board(plant("pc_x86_64", files={"/sys/devices/cpu_atom/cpus": "4-7,12-15\n"}))
    assert [(cluster.kind, len(cluster.cpus)) for cluster in board.clusters] == [("big", 8), ("little", 8)]
    assert board.big_cpus == (0, 1, 2, 3)


def test_cores_are_told_apart_by_design_where_capacities_are_missing(plant: Plant) -> None:
    capacities = [f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity" for cpu in range(8)]
    assert read_board(plant("rk3588_vendor", without=capacities)).big_cpus == (4, 5, 6, 7)


def test_only_cpus_that_this_process_may_use_are_used(plant: Plant) -> None:
    status = {"/proc/self/status": "Cpus_allowed_list:\t2-5\n"}
    assert read_board(plant("rk3588_vendor", files=status)).big_cpus == (4, 5)


def test_little_cores_are_used_when_nothing_else_is_allowed(plant: Plant) -> None:
    status = {"/proc/self/status": "Cpus_allowed_list:\t0-1\n"}
    assert read_board(plant("rk3588_vendor", files=status)).big_cpus == (0, 1)


@pytest.mark.parametrize(
    ("compatible", "chip"),
    [
        ("rockchip,rk3588s-orangepi-5\0rockchip,rk3588\0", "RK3588S"),
        ("xunlong,orangepi-5\0rockchip,rk3588s\0", "RK3588S"),
        ("radxa,e52c\0rockchip,rk3582\0rockchip,rk3588s\0", "RK3582"),
        ("friendlyarm,nanopi-m5\0rockchip,rk3576\0", "RK3576"),
        ("raspberrypi,5-model-b\0brcm,bcm2712\0", "brcm,bcm2712"),
    ],
)
def test_chips_are_named_by_the_device_tree(plant: Plant, compatible: str, chip: str) -> None:
    assert read_board(plant("rk3588_vendor", files={"/proc/device-tree/compatible": compatible})).chip == chip


def test_a_chip_with_an_npu_and_no_driver_says_so(plant: Plant) -> None:
    board = read_board(plant("rk3588_mainline", without=["/sys/class/accel/accel0/device/driver"]))
    assert board.npu is not None
    assert (board.npu.driver, board.npu.nodes) == ("none", ())


def test_a_container_without_device_tree(plant: Plant) -> None:
    hidden = ["/proc/device-tree/compatible", "/proc/device-tree/model"]
    board = read_board(plant("rk3588_vendor", without=hidden, files={"/.dockerenv": ""}))
    assert (board.chip, board.model, board.in_container) == ("unknown", "", True)
    assert board.describe() == "4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43"


def test_a_machine_that_says_nothing_is_all_unknown(tmp_path: Path) -> None:
    board = read_board(Machine(tmp_path))
    assert (board.chip, board.clusters, board.big_cpus, board.memory_bytes) == ("unknown", (), (), None)
    assert (board.swap_used_bytes, board.npu, board.gpu, board.open_files_soft) == (None, None, None, None)


def test_facts_are_json(plant: Plant) -> None:
    facts = read_board(plant("rk3588_vendor")).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["description"].startswith("Orange Pi 5 Plus")
    assert facts["clusters"][1]["cpus"] == [4, 5, 6, 7]


def test_this_machine() -> None:
    board = read_board()
    uname = os.uname()
    assert (board.kernel, board.architecture) == (uname.release, uname.machine)
    # A container may be shown less memory than the machine has, never more.
    assert 0 < (board.memory_bytes or 0) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < len(board.big_cpus) <= board.physical_cores
    assert set(board.big_cpus) <= os.sched_getaffinity(0) <= {cpu for c in board.clusters for cpu in c.cpus}


FILES = ["/proc/cpuinfo", "/proc/meminfo", "/proc/self/limits", "/proc/self/status", "/proc/device-tree/compatible"]
FILES += ["/sys/devices/system/cpu/online", "/sys/class/devfreq/dmc/cur_freq", "/sys/module/rknpu/version"]
FILES += [f"/sys/devices/system/cpu/cpufreq/policy4/{name}" for name in ("related_cpus", "cpuinfo_max_freq")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=200) | st.from_regex(rb"[a-zA-Z_ :0-9,\-]{0,80}")))
def test_no_content_makes_it_raise(tmp_path: Path, contents: dict[str, bytes]) -> None:
    for path in FILES:
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents.get(path, b""))
    board = read_board(Machine(tmp_path))
    assert isinstance(board, Board)
    assert json.dumps(board.facts())
    assert set(board.big_cpus) <= {cpu for cluster in board.clusters for cpu in cluster.cpus}

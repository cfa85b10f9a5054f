import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.board.snapshot import DeviceNode, read_board
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]

ONLINE = "/sys/devices/system/cpu/online"


def test_rk3588_vendor(plant: Plant) -> None:
    board = read_board(plant("rk3588_vendor"))
    assert board.describe() == "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43"
    little, big = board.clusters
    assert (little.cpus, little.kind, little.max_khz, little.capacity) == ((0, 1, 2, 3), "little", 1_800_000, 530)
    assert (big.cpus, big.kind, big.max_khz, big.governor) == ((4, 5, 6, 7), "big", 2_352_000, "ondemand")
    assert (little.current_khz, big.current_khz, big.limit_khz) == (1_008_000, 408_000, None)
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


def test_rk3576(plant: Plant) -> None:
    board = read_board(plant("rk3576"))
    assert board.describe() == "FriendlyElec NanoPi M5 · RK3576 · 4×Cortex-A72 + 4×Cortex-A53 · 16 GiB · Linux 6.1.99"
    little, big = board.clusters
    assert (little.capacity, big.capacity, big.limit_khz, big.current_khz) == (460, 1024, 2_304_000, 2_304_000)
    assert board.npu is not None
    assert (board.npu.cores, board.npu.driver, len(board.runtimes)) == (2, "rknpu", 2)
    assert board.gpu is not None
    assert (board.gpu.name, board.gpu.driver) == ("Mali-G52 MC3", "kbase")


def test_rk3562(plant: Plant) -> None:
    board = read_board(plant("rk3562"))
    assert (board.chip, board.gpu, board.big_cpus) == ("RK3562", None, (0, 1, 2, 3))
    assert board.npu is not None
    assert (board.npu.version, board.npu.cores) == ("0.9.6", 1)


def test_raspberry_pi_5(plant: Plant) -> None:
    board = read_board(plant("raspberry_pi_5"))
    assert board.describe() == "Raspberry Pi 5 Model B Rev 1.0 · BCM2712 · 4×Cortex-A76 · 8 GiB · Linux 6.6.51+rpt"
    assert (board.npu, board.big_cpus) == (None, (0, 1, 2, 3))
    assert board.gpu is not None
    assert (board.gpu.driver, board.gpu.name) == ("v3d", "VideoCore VII")


def test_a_container_with_docker_s_own_settings(plant: Plant) -> None:
    board = read_board(plant("rk3588_container"))
    assert (board.chip, board.model, board.in_container, board.device_tree_hidden) == ("unknown", "", True, True)
    assert board.npu is not None
    assert [node.usable for node in board.npu.nodes] == [False, False]


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
        ("rockchip,rk3568-evb\0rockchip,rk3568\0", "RK3568"),
        ("rockchip,rk3562-evb\0rockchip,rk3562\0", "RK3562"),
        ("rockchip,rv1126b-evb\0rockchip,rv1126b\0", "RV1126B"),
        ("raspberrypi,5-model-b\0brcm,bcm2712\0", "BCM2712"),
        ("raspberrypi,4-model-b\0brcm,bcm2711\0", "brcm,bcm2711"),
        ("radxa,cubie-a7s\0allwinner,a733\0arm,sun60iw2p1\0", "A733"),
        ("maker,board\0allwinner,t527\0arm,sun55iw3p1\0", "allwinner,t527"),
        ("arm,juno\0", "arm,juno"),
        ("rockchip,rk3572-evb1-v10\0rockchip,rk3572\0", "RK3572"),
        ("rockchip,rk3688-evb\0", "RK3688"),
        ("maker,board\0rockchip,rk3668s\0", "RK3668S"),
    ],
)
def test_chips_are_named_by_the_device_tree(plant: Plant, compatible: str, chip: str) -> None:
    assert read_board(plant("rk3588_vendor", files={"/proc/device-tree/compatible": compatible})).chip == chip


def test_a_design_is_its_makers(plant: Plant) -> None:
    """HiSilicon's Cortex-A76 has the part number of Arm's Neoverse-V1."""
    cpuinfo = "processor\t: 0\nCPU implementer\t: 0x48\nCPU part\t: 0xd40\n"
    (cluster,) = read_board(plant("rk3566", files={"/proc/cpuinfo": cpuinfo}, without=[ONLINE])).clusters
    assert cluster.core_type == "Cortex-A76"


def test_npus_that_no_engine_supports(plant: Plant) -> None:
    board = read_board(plant("cubie_a7s"))
    assert (board.npu, board.other_npus) == (None, ("VeriSilicon NPU (/dev/vipcore)",))
    board = read_board(plant("cubie_a7s", without=["/dev/vipcore"]))
    assert board.other_npus == ("NPU (3600000.npu)",)
    board = read_board(plant("rk3572"))
    assert (board.npu, board.other_npus) == (None, ("RKNPU3 (driver rknpu3)",))
    clock = [f"/sys/class/devfreq/27700000.npu/{name}" for name in ("cur_freq", "max_freq", "governor")]
    board = read_board(plant("rk3572", without=["/sys/module/rknpu3/version", *clock]))
    assert board.other_npus == ("NPU (rockchip,rk3572-rknpu)",)


def test_a_pc_s_npu_is_one_that_no_engine_supports(plant: Plant) -> None:
    machine = plant("pc_x86_64")
    driver = machine.root / "sys/class/accel/accel0/device/driver"
    driver.parent.mkdir(parents=True)
    driver.symlink_to("../../../bus/pci/drivers/amdxdna")
    assert read_board(machine).other_npus == ("NPU (driver amdxdna)",)


@pytest.mark.parametrize("tree", ["rk3588_vendor", "rk3588_mainline", "rk3576", "raspberry_pi_5", "pc_x86_64"])
def test_a_supported_npu_is_not_named_twice(plant: Plant, tree: str) -> None:
    assert read_board(plant(tree)).other_npus == ()


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


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="no lscpu (package util-linux)")
def test_lscpu_agrees() -> None:
    board = read_board()
    table = subprocess.run(["lscpu", "-p=CPU,CORE,SOCKET"], capture_output=True, text=True, timeout=30, check=True)
    rows = [line.split(",") for line in table.stdout.splitlines() if not line.startswith("#")]
    assert sorted(cpu for cluster in board.clusters for cpu in cluster.cpus) == sorted(int(row[0]) for row in rows)
    assert board.physical_cores == len({(row[1], row[2]) for row in rows})
    fields = dict(line.split(":", 1) for line in _words("lscpu").splitlines() if ":" in line)
    assert board.architecture == fields["Architecture"].strip()
    if "CPU max MHz" in fields:
        fastest = max(cluster.max_khz or 0 for cluster in board.clusters)
        assert fastest / 1e3 == pytest.approx(float(fields["CPU max MHz"].strip()), rel=0.01)


@pytest.mark.skipif(shutil.which("free") is None, reason="no free (package procps)")
def test_free_agrees() -> None:
    board = read_board()
    rows = {line.split()[0]: line.split()[1:] for line in _words("free", "-b").splitlines()[1:]}
    assert board.memory_bytes == int(rows["Mem:"][0])
    assert board.memory_available_bytes == pytest.approx(int(rows["Mem:"][-1]), abs=1 << 30)
    assert board.swap_bytes == int(rows["Swap:"][0]) == sum(swap.size_bytes for swap in board.swaps)


def _words(*command: str) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment).stdout


def test_reading_the_board_takes_little_time() -> None:
    took = []
    for _ in range(6):  # the best of them: on a busy machine the same work takes a CPU longer
        began = time.process_time_ns()
        read_board()
        took.append(time.process_time_ns() - began)
    assert min(took) < 0.15e9

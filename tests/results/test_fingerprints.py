"""What makes a plan stale: each fact of the machine by itself."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.accelerators import Gpu, Npu
from trilithon.board.libraries import NpuRuntime
from trilithon.board.processors import Cluster
from trilithon.board.snapshot import Board, Clock, read_board
from trilithon.board.vulkan import VulkanDriver
from trilithon.results.fingerprints import fingerprint_of, stale_facts
from trilithon.results.plans import Plan
from trilithon.settings import Configuration, load_configuration

CPU = "llama.cpp/cpu"
BIG = Cluster(
    cpus=(4, 5),
    kind="big",
    core_type="Cortex-A76",
    max_khz=2_400_000,
    limit_khz=2_400_000,
    current_khz=408_000,
    capacity=1024,
    governor="performance",
)
LITTLE = replace(BIG, cpus=(0, 1), kind="little", core_type="Cortex-A55", max_khz=1_800_000, capacity=530)
MEMORY = Clock(
    unit="memory",
    device="dmc",
    current_hz=2_112_000_000,
    max_hz=2_112_000_000,
    governor="dmc_ondemand",
    limit_hz=2_112_000_000,
)
NPU_CLOCK = replace(MEMORY, unit="npu", device="fdab0000.npu", max_hz=1_000_000_000, governor="rknpu_ondemand")


@pytest.fixture
def board() -> Board:
    return replace(
        read_board(),
        model="Orange Pi 5 Plus",
        chip="RK3588",
        clusters=(LITTLE, BIG),
        kernel="6.1.43-rockchip",
        memory_bytes=16_500_000_000,
        gpu=Gpu(driver="panthor", name="Mali-G610", nodes=()),
        vulkan=(),
        npu=Npu(driver="rknpu", version="0.9.6", cores=3, nodes=()),
        runtimes=(NpuRuntime(library="librkllmrt.so", path="/usr/lib/librkllmrt.so", version="1.2.1"),),
        clocks=(MEMORY, NPU_CLOCK),
    )


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return load_configuration({"TRILITHON_DATA": str(tmp_path / "data"), "TRILITHON_CACHE": str(tmp_path / "cache")})


def plan(placement: str, board: Board, configuration: Configuration) -> Plan:
    facts = fingerprint_of(placement, board, configuration)
    return Plan(sha256="a", placement=placement, board="", campaign=1, sentence="", fingerprint=facts)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kernel": "6.1.75-rockchip"}, "kernel 6.1.43-rockchip → 6.1.75-rockchip"),
        ({"gpu": Gpu(driver="kbase", name="Mali-G610", nodes=())}, "GPU driver panthor → kbase"),
        ({"gpu": None}, "GPU driver panthor → none"),
        ({"npu": Npu(driver="rknpu", version="0.9.8", cores=3, nodes=())}, "NPU driver rknpu 0.9.6 → rknpu 0.9.8"),
        ({"npu": Npu(driver="rocket", version=None, cores=3, nodes=())}, "NPU driver rknpu 0.9.6 → rocket"),
        ({"npu": None}, "NPU driver rknpu 0.9.6 → none"),
        (
            {"runtimes": (NpuRuntime(library="librkllmrt.so", path="/lib/librkllmrt.so", version="1.2.3"),)},
            "NPU runtime librkllmrt.so 1.2.1 → librkllmrt.so 1.2.3",
        ),
        ({"runtimes": ()}, "NPU runtime librkllmrt.so 1.2.1 → none"),
        ({"memory_bytes": 8_200_000_000}, "memory 15 GiB → 8 GiB"),
        ({"clusters": (LITTLE, replace(BIG, max_khz=2_256_000))}, "top clocks cpu4-5 2400 MHz → cpu4-5 2256 MHz"),
        ({"clusters": (LITTLE, replace(BIG, governor="ondemand"))}, "governors cpu4-5 performance → cpu4-5 ondemand"),
        (
            {"clocks": (replace(MEMORY, max_hz=1_560_000_000, limit_hz=None), NPU_CLOCK)},
            "top clocks memory 2112 MHz → memory 1560 MHz",
        ),
        ({"clocks": (replace(MEMORY, limit_hz=528_000_000), NPU_CLOCK)}, "top clocks memory 2112 MHz → memory 528 MHz"),
        (
            {"clocks": (replace(MEMORY, governor="userspace", current_hz=528_000_000), NPU_CLOCK)},
            "governors memory dmc_ondemand → memory userspace 528 MHz",
        ),
        (
            {"clocks": (MEMORY, replace(NPU_CLOCK, governor="powersave"))},
            "governors npu rknpu_ondemand → npu powersave",
        ),
        ({"model": "Orange Pi 5"}, "board Orange Pi 5 Plus"),
    ],
)
def test_each_change_is_told_alone(
    changes: dict[str, object], told: str, board: Board, configuration: Configuration
) -> None:
    kept = plan(CPU, board, configuration)
    assert stale_facts(kept, board, configuration) == ()
    (fact,) = stale_facts(kept, replace(board, **changes), configuration)  # type: ignore[arg-type]
    assert str(fact).startswith(told)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 16_500_000_000 - 40_000_000, "memory_available_bytes": 1},
        {"clusters": (LITTLE, replace(BIG, limit_khz=1_800_000, current_khz=1_800_000))},  # hot
        {"clocks": (replace(MEMORY, current_hz=528_000_000), replace(NPU_CLOCK, limit_hz=600_000_000))},
        {"swap_used_bytes": 1, "disks": ()},
    ],
)
def test_what_changes_all_the_time_makes_nothing_stale(
    changes: dict[str, object], board: Board, configuration: Configuration
) -> None:
    kept = plan(CPU, board, configuration)
    assert stale_facts(kept, replace(board, **changes), configuration) == ()  # type: ignore[arg-type]


def test_another_vulkan_driver_is_a_gpu_driver(board: Board, configuration: Configuration) -> None:
    driver = VulkanDriver(name="panvk", manifest="", version="25.1", library="", serves=True, software=False)
    kept = plan(CPU, replace(board, vulkan=(driver,)), configuration)
    newer = replace(board, vulkan=(replace(driver, version="25.2"),))
    (fact,) = stale_facts(kept, newer, configuration)
    assert str(fact) == "GPU driver panvk 25.1 → panvk 25.2"


def test_a_rebuilt_program_is_another_build(tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same version, compiled with other flags."""
    server = tmp_path / "build/llama-server"
    server.parent.mkdir()
    server.write_text("#!/bin/sh\necho 'version: 6123 (abc1234)' >&2\n")
    server.chmod(0o755)
    configuration = load_configuration(
        {
            "TRILITHON_DATA": str(tmp_path / "data"),
            "TRILITHON_CACHE": str(tmp_path / "cache"),
            "TRILITHON_BUILDS": str(server.parent),
        }
    )
    kept = plan("llama.cpp@native/cpu", board, configuration)
    assert stale_facts(kept, board, configuration) == ()
    os.utime(server, ns=(1, 1))
    (fact,) = stale_facts(kept, board, configuration)
    assert (fact.fact, fact.before.split()[:4]) == ("build", ["llama.cpp", "native", "6123", "(abc1234)"])
    assert fact.after.split()[:4] == fact.before.split()[:4]
    server.unlink()
    (fact,) = stale_facts(kept, board, configuration)
    assert str(fact).startswith("cannot run: placement llama.cpp@native/cpu")


def test_a_handover_has_two_builds(board: Board, configuration: Configuration) -> None:
    facts = fingerprint_of("scripted/npu+llama.cpp/cpu", board, configuration)
    assert facts["build"].startswith("scripted ")
    assert " + llama.cpp " in facts["build"]


def test_facts_that_another_version_keeps_are_not_compared(board: Board, configuration: Configuration) -> None:
    kept = plan(CPU, board, configuration)
    kept = replace(kept, fingerprint={"firmware": "1.0", "kernel": kept.fingerprint["kernel"]})
    assert stale_facts(kept, board, configuration) == ()

"""The measured clock: the machine code's meaning, groups of CPUs, and what is told. No test expects a speed."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.board.processors import Cluster
from trilithon.board.sensors.clock_speed import (
    MeasuredClock,
    clock_findings,
    clock_groups,
    far_clocks,
    fastest_piece,
    machine_code,
    measure_clocks,
)
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.errors import UserError

CPUFREQ = "sys/devices/system/cpu/cpufreq"


def _clock(measured: float, claimed: float | None) -> MeasuredClock:
    return MeasuredClock(cpus=(4, 5), measured_hz=measured * 1e9, claimed_hz=claimed and claimed * 1e9)


def _cluster(*cpus: int) -> Cluster:
    unknown = dict.fromkeys(("core_type", "max_khz", "limit_khz", "current_khz", "capacity", "governor"))
    return Cluster(cpus=cpus, kind="all", **unknown)  # type: ignore[arg-type] # all are None


def test_the_code_for_arm_is_a_loop_of_256_dependent_additions() -> None:
    """By the A64 instruction set: operation bits, destination, sources, and the distance of the branch."""
    *additions, subtract, branch, leave = struct.unpack("<259I", machine_code("aarch64"))
    assert len(additions) == 256
    for word in additions:  # ADD Xd, Xn, Xm without a shift: Xd is Xn, and Xm another
        assert word & 0xFFE0FC00 == 0x8B000000
        assert (word & 31, word >> 5 & 31, word >> 16 & 31) == (1, 1, 2)
    assert (subtract & 0xFF800000, subtract >> 10 & 0xFFF) == (0xF1000000, 1)  # SUBS X0, X0, #1
    assert (subtract & 31, subtract >> 5 & 31) == (0, 0)
    assert (branch & 0xFF00001F, (branch >> 5 & 0x7FFFF) - (1 << 19)) == (0x54000001, -257)  # B.NE to the first
    assert leave == 0xD65F03C0


def test_an_architecture_without_code_is_refused() -> None:
    with pytest.raises(UserError, match="on aarch64 and x86_64 only, not on riscv64"):
        machine_code("riscv64")


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no machine code for this CPU")
def test_this_machine_is_measured() -> None:
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    (clock,) = measure_clocks([_cluster(*cpus)], Machine(Path("/nonexistent")), seconds=0.01)
    assert (clock.cpus, clock.claimed_hz, clock.far) == (cpus, None, False)
    assert 1e6 < clock.measured_hz < 2e10
    assert os.sched_getaffinity(0) == set(cpus)


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no machine code for this CPU")
@pytest.mark.parametrize(("claimed_khz", "far"), [("1000\n", True), ("garbled\n", False)])
def test_the_claim_is_cpufreqs(tmp_path: Path, claimed_khz: str, far: bool) -> None:
    cpu = min(os.sched_getaffinity(0))
    for name, text in (("related_cpus", f"{cpu} 8000"), ("scaling_cur_freq", claimed_khz)):
        (tmp_path / CPUFREQ / "policy0").mkdir(parents=True, exist_ok=True)
        (tmp_path / CPUFREQ / "policy0" / name).write_text(text)
    (clock,) = measure_clocks([_cluster(cpu)], Machine(tmp_path), seconds=0.01)
    assert (clock.claimed_hz, clock.far) == (1e6 if far else None, far)


def test_a_piece_in_which_the_claim_changed_does_not_count() -> None:
    """A governor raises the clock meanwhile: the first piece takes no time, and claims 1 and then 2 MHz."""
    calls: list[int] = []

    def loop(times: int) -> None:
        calls.append(times)
        if len(calls) > 1:
            time.sleep(times * 1e-8)

    claims = iter([1000])
    hertz, claimed = fastest_piece(loop, lambda: next(claims, 2000), seconds=0.0)
    assert (len(calls), calls[0], claimed) == (3, 1000, 2e6)
    assert hertz <= 256 / 1e-8
    assert fastest_piece(loop, lambda: None, seconds=0.0)[1] is None


def test_a_cpu_that_this_process_may_not_use_is_left_out() -> None:
    assert measure_clocks([_cluster(4095)], Machine(Path("/nonexistent")), seconds=0.01) == ()


def test_cpus_are_measured_in_the_groups_that_share_a_clock(tmp_path: Path) -> None:
    for name in ("0 1 2 3", "4 5", "6 7"):
        folder = tmp_path / CPUFREQ / f"policy{name[0]}"
        folder.mkdir(parents=True)
        (folder / "related_cpus").write_text(name)
    groups = clock_groups([_cluster(0, 1, 2, 3), _cluster(4, 5, 6, 7)], Machine(tmp_path))
    assert list(groups) == [(0, 1, 2, 3), (4, 5), (6, 7)]


def test_a_policy_for_each_cpu_is_measured_once_a_cluster(tmp_path: Path) -> None:
    for cpu in range(4):
        folder = tmp_path / CPUFREQ / f"policy{cpu}"
        folder.mkdir(parents=True)
        (folder / "related_cpus").write_text(f"{cpu}")
    assert list(clock_groups([_cluster(0, 1), _cluster(2, 3)], Machine(tmp_path))) == [(0, 1), (2, 3)]
    assert list(clock_groups([_cluster(0, 1)], Machine(Path("/nonexistent")))) == [(0, 1)]


@pytest.mark.parametrize(
    ("measured", "claimed", "words"),
    [
        (2.31, 2.352, "cpu4-5 measured 2.31 GHz, claimed 2.35 GHz (-2%)"),
        (0.7, 2.352, "cpu4-5 measured 0.70 GHz, claimed 2.35 GHz (-70%)"),
        (2.65, 2.35, "cpu4-5 measured 2.65 GHz, claimed 2.35 GHz (+13%)"),
        (1.5, None, "cpu4-5 measured 1.50 GHz; nothing claims one"),
    ],
)
def test_a_clock_in_words(measured: float, claimed: float | None, words: str) -> None:
    assert _clock(measured, claimed).describe() == words


@pytest.mark.parametrize(
    ("measured", "claimed", "far"),
    [(1, 1, False), (0.91, 1, False), (0.89, 1, True), (1.09, 1, False), (1.13, 1, True), (1, None, False)],
)
def test_a_finding_from_a_tenth_on(measured: float, claimed: float | None, far: bool) -> None:
    clocks = [_clock(measured, claimed), _clock(1.0, 1.0)]
    assert [finding.id for finding in clock_findings(clocks)] == ["clock-measured"] * far
    assert len(far_clocks(clocks)) == far


def test_the_finding_names_the_clock_and_what_may_set_it(plant: Callable[..., Machine]) -> None:
    (finding,) = clock_findings([_clock(0.7, 2.35)])
    assert finding.message.startswith("cpu4-5 measured 0.70 GHz, claimed 2.35 GHz (-70%): other work, heat")
    assert finding.fix.startswith("trilithon doctor --measure-clocks")
    groups = clock_groups(read_board(plant("rk3588_vendor")).clusters, plant("rk3588_vendor"))
    assert list(groups) == [(0, 1, 2, 3), (4, 5), (6, 7)]

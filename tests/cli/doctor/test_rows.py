"""What the doctor says of units that no engine uses."""

from pathlib import Path

import pytest

from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.cli.doctor.rows import rows_of_missing_units

DEVICE_TREE = "proc/device-tree/compatible"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (
            {DEVICE_TREE: "maker,board\0rockchip,rk3572\0", "sys/module/rknpu3/version": "1"},
            "unknown chip RK3572 with RKNPU3 (driver rknpu3): no engine here is known to support its NPU",
        ),
        (
            {DEVICE_TREE: "rockchip,rk3688-evb\0rockchip,rk3688\0"},
            "unknown chip RK3688: no engine here is known to support its NPU",
        ),
        (
            {DEVICE_TREE: "radxa,cubie-a7s\0allwinner,a733\0", "sys/class/devfreq/3600000.npu/cur_freq": "1"},
            "no engine here supports the NPU (3600000.npu)",
        ),
        (
            {"sys/bus/pci/devices/0/vendor": "0x1d87", "sys/bus/pci/devices/0/device": "0x1828"},
            "no engine here supports the Rockchip coprocessor (PCI 1d87:1828)",
        ),
        ({DEVICE_TREE: "rockchip,rk3588\0"}, "no engine here supports the NPU"),
        ({DEVICE_TREE: "raspberrypi,4-model-b\0brcm,bcm2711\0"}, "the kernel shows no NPU here"),
        ({}, "the kernel shows no NPU here"),
        (
            {"proc/sys/kernel/arch": "aarch64", "sys/module/rknpu/version": "0.9.8"},
            "the device tree is hidden here, and the chip cannot be told: see the findings",
        ),
    ],
)
def test_why_no_engine_uses_the_npu(tmp_path: Path, files: dict[str, str], why: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (row,) = rows_of_missing_units({"cpu", "gpu"}, read_board(Machine(tmp_path)))
    assert (row.placement, row.usable, row.why) == ("npu", False, why)


def test_a_unit_that_engines_use_has_no_such_row(tmp_path: Path) -> None:
    board = read_board(Machine(tmp_path))
    assert [row.placement for row in rows_of_missing_units({"cpu"}, board)] == ["gpu", "npu"]
    assert rows_of_missing_units({"cpu", "gpu", "npu"}, board) == []

from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.board.storage import read_disks, read_swaps
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]


@pytest.mark.parametrize(
    ("tree", "swaps"),
    [
        ("rk3588_vendor", [("/swapfile", "eMMC", 0)]),
        ("rk3588_mainline", [("/dev/zram0", "zram", 0)]),
        ("rk3566", [("/dev/mmcblk1p3", "SD card", 300 << 20)]),
        ("rk3562", [("/dev/dm-0", "eMMC", 0)]),
        ("raspberry_pi_5", [("/var/swap", "SD card", 0)]),
        ("rk3576", []),
        ("rk3588_throttled", []),
    ],
)
def test_what_swap_lies_on(plant: Plant, tree: str, swaps: list[tuple[str, str, int]]) -> None:
    assert [(swap.path, swap.kind, swap.used_bytes) for swap in read_swaps(plant(tree))] == swaps


def test_a_name_with_a_space_is_read_as_the_kernel_writes_it(plant: Plant) -> None:
    row = "Filename Type Size Used Priority\n/my\\040disk/swap file 1024 12 -2\n"
    (swap,) = read_swaps(plant("rk3588_vendor", files={"/proc/swaps": row}))
    assert (swap.path, swap.size_bytes, swap.used_bytes) == ("/my disk/swap", 1 << 20, 12 << 10)


@pytest.mark.parametrize(
    ("source", "facts", "kind"),
    [
        ("/dev/nvme0n1p2", {}, "NVMe"),
        ("/dev/sda1", {"/sys/block/sda/queue/rotational": "0\n"}, "SSD"),
        ("/dev/sda", {"/sys/block/sda/queue/rotational": "1\n"}, "hard disk"),
        ("/dev/sda1", {}, "unknown"),
        ("/dev/vda1", {}, "virtual"),
        ("/dev/mmcblk0", {"/sys/block/mmcblk0/device/type": "MMC\n"}, "eMMC"),
        ("/dev/mmcblk0p1", {"/sys/block/mmcblk0/device/type": "SDIO\n"}, "unknown"),
        ("/dev/md0", {"/sys/block/md0/slaves/nvme1n1p1/size": "1\n"}, "NVMe"),
        ("overlay", {}, "unknown"),
    ],
)
def test_disks_by_their_names(tmp_path: Path, source: str, facts: dict[str, str], kind: str) -> None:
    files = facts | {"/proc/self/mountinfo": f"24 1 9:9 / / rw shared:1 - ext4 {source} rw\n"}
    for path, text in files.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text)
    assert [disk.kind for disk in read_disks(Machine(tmp_path), [Path("/data")])] == [kind]


def test_the_deepest_mount_counts_and_a_folder_need_not_be_there(plant: Plant) -> None:
    machine = plant("rk3588_container", files={"/data/models/x": ""})
    disks = read_disks(machine, [Path("/data/models/new/folder"), Path("/database")])
    assert [(disk.folder, disk.kind) for disk in disks] == [
        ("/data/models/new/folder", "network"),
        ("/database", "unknown"),
    ]
    assert all((disk.free_bytes or 0) > 0 for disk in disks)


def test_disks_in_a_circle_end(tmp_path: Path) -> None:
    for disk, below in (("dm-0", "dm-1"), ("dm-1", "dm-0")):
        (tmp_path / f"sys/block/{disk}/slaves/{below}").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/swaps").write_text("/dev/dm-0 partition 100 0 -2\n")
    assert [swap.kind for swap in read_swaps(Machine(tmp_path))] == ["unknown"]


def test_this_machine_s_disks() -> None:
    (disk,) = read_disks(Machine(), [Path.home() / "not/there"])
    assert (disk.free_bytes or 0) > 0

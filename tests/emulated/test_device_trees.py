"""The device trees of real boards, from Debian's arm64 kernel."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from device_tree import PARTS, Node, cpus, plant_device_tree, read_device_tree

from trilithon.board.chips import chips, is_unknown_rockchip
from trilithon.board.doctor import findings
from trilithon.board.snapshot import Board, read_board

# Big cores by the chips' data sheets. The others of a chip are little ones; a chip without big cores has a single kind.
BIG = {"arm,cortex-a76", "arm,cortex-a72"}


def board_of(file: Path, folder: Path) -> tuple[Node, Board]:
    root = read_device_tree(file)
    shutil.rmtree(folder, ignore_errors=True)
    machine = plant_device_tree(root, folder)
    board = read_board(machine)
    assert isinstance(findings(board, machine), list)
    return root, board


def chip_by_name(root: Node) -> str:
    """The last entry of `compatible` is the chip's most general name, the board's own come first."""
    return next(
        entry.partition(",")[2].upper()
        for entry in root.strings("compatible")
        if re.fullmatch(r"rockchip,rk3\d{3}\w*", entry)
    )


@pytest.mark.slow
def test_every_rk35xx_board_is_recognised(device_trees: Path, tmp_path: Path) -> None:
    files = sorted((device_trees / "rockchip").glob("rk35*.dtb"))
    assert len(files) > 120
    names: Counter[str] = Counter()
    for file in files:
        root, board = board_of(file, tmp_path / "tree")
        assert board.chip == chip_by_name(root), file.name
        assert board.model == root.strings("model")[0], file.name
        assert board.clusters, file.name
        types = [
            name.removeprefix("arm,") for node in cpus(root) for name in node.strings("compatible") if name in PARTS
        ]
        shown = [cluster.core_type for cluster in board.clusters for _ in cluster.cpus]
        assert Counter(name and name.lower() for name in shown) == Counter(types), file.name
        both = len(set(types)) > 1
        for cluster in board.clusters:
            big = f"arm,{(cluster.core_type or '').lower()}" in BIG
            assert cluster.kind == ("all" if not both else "big" if big else "little"), file.name
        assert set(board.big_cpus) == {
            cpu for cluster in board.clusters if cluster.kind != "little" for cpu in cluster.cpus
        }, file.name
        names[board.chip] += 1
    # Every chip of the table that mainline knows is among them.
    assert {"RK3566", "RK3568", "RK3576", "RK3588", "RK3588S"} <= names.keys()


@pytest.mark.slow
def test_no_board_of_another_maker_is_taken_for_rockchip(device_trees: Path, tmp_path: Path) -> None:
    known = {chip.name for chip in chips().values()}
    count = 0
    for maker in sorted(folder for folder in device_trees.iterdir() if folder.name != "rockchip"):
        for file in sorted(maker.glob("*.dtb"))[::5]:
            root = read_device_tree(file)
            if "cpus" not in root.children:  # an overlay
                continue
            _, board = board_of(file, tmp_path / "tree")
            assert not re.match(r"RK|RV\d", board.chip), file
            assert not is_unknown_rockchip(board.chip), file
            assert board.npu is None, file
            assert board.chip in known or "," in board.chip or board.chip == "unknown", (file, board.chip)
            count += 1
    assert count > 200

"""Disks as far as they matter here: what swap lies on, and how much room the folders have that Trilithon writes to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from trilithon.board.sysfs import Machine

__all__ = ["Disk", "DiskKind", "Swap", "read_disks", "read_swaps"]

DiskKind = Literal["SD card", "eMMC", "NVMe", "SSD", "hard disk", "zram", "virtual", "network", "memory", "unknown"]

_ROW = re.compile(r"(/\S+)\s+(\w+)\s+(\d{1,18})\s+(\d{1,18})\s+-?\d+", re.ASCII)
_PARTITION = re.compile(r"(?P<disk>(?:mmcblk|nvme\d{1,4}n|loop)\d{1,4}|[a-z]{1,8})(?:p?\d{1,4})?", re.ASCII)
_NAMED: dict[str, DiskKind] = {"zram": "zram", "nvme": "NVMe", "vd": "virtual", "xvd": "virtual", "loop": "virtual"}
_FILE_SYSTEMS: dict[str, DiskKind] = {"nfs": "network", "nfs4": "network", "cifs": "network", "9p": "virtual"}
_FILE_SYSTEMS |= {"tmpfs": "memory", "virtiofs": "virtual", "ramfs": "memory"}
_DEEPEST = 4  # LUKS on LVM on RAID is three


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    path: str
    kind: DiskKind
    size_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system that holds `folder`, or would once the folder is made."""

    folder: str
    kind: DiskKind
    free_bytes: int | None


def read_swaps(machine: Machine) -> tuple[Swap, ...]:
    swaps = []
    for line in (machine.text("/proc/swaps") or "").splitlines():
        match = _ROW.fullmatch(line.strip())
        if match is None:
            continue
        # The kernel writes a space in a name as \040.
        path = re.sub(r"\\([0-3][0-7]{2})", lambda code: chr(int(code[1], 8)), match[1])
        kind = _kind_of_folder(machine, path) if match[2] == "file" else _kind(machine, PurePosixPath(path).name)
        sizes = {"size_bytes": int(match[3]) << 10, "used_bytes": int(match[4]) << 10}
        swaps.append(Swap(path=path, kind=kind, **sizes))
    return tuple(swaps)


def read_disks(machine: Machine, folders: Iterable[Path]) -> tuple[Disk, ...]:
    """One entry per folder; one that is not there yet is judged by what will hold it."""
    disks = []
    for folder in folders:
        there = next((parent for parent in (folder, *folder.parents) if machine.exists(str(parent))), Path("/"))
        kind = _kind_of_folder(machine, str(there))
        disks.append(Disk(folder=str(folder), kind=kind, free_bytes=machine.free_bytes(str(there))))
    return tuple(disks)


def _kind_of_folder(machine: Machine, path: str) -> DiskKind:
    """By the mount with the longest path above it: proc(5), /proc/PID/mountinfo."""
    best: tuple[str, str, str, str] | None = None
    for line in (machine.text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) < 5 or len(tail) < 2:
            continue
        if PurePosixPath(path).is_relative_to(fields[4]) and (best is None or len(fields[4]) >= len(best[0])):
            best = (fields[4], fields[2], tail[0], tail[1])
    if best is None:
        return "unknown"
    _, number, file_system, source = best
    if file_system in _FILE_SYSTEMS:
        return _FILE_SYSTEMS[file_system]
    by_number = machine.link(f"/sys/dev/block/{number}") if re.fullmatch(r"\d+:\d+", number, re.ASCII) else None
    return _kind(machine, by_number or PurePosixPath(source).name)


def _kind(machine: Machine, block_device: str, depth: int = 0) -> DiskKind:
    """Of a disk or partition by its kernel name, "mmcblk1p2"."""
    if re.fullmatch(r"(dm-|md|zram)\d{1,4}", block_device, re.ASCII):
        if block_device.startswith("zram"):
            return "zram"
        below = machine.glob(f"/sys/block/{block_device}/slaves/*")
        return _kind(machine, PurePosixPath(below[0]).name, depth + 1) if below and depth < _DEEPEST else "unknown"
    match = _PARTITION.fullmatch(block_device)
    if match is None:
        return "unknown"
    disk = match["disk"]
    if disk.startswith("mmcblk"):
        kinds: dict[str | None, DiskKind] = {"SD": "SD card", "MMC": "eMMC"}
        return kinds.get(machine.text(f"/sys/block/{disk}/device/type"), "unknown")
    named = next((kind for start, kind in _NAMED.items() if disk.startswith(start)), None)
    rotates: dict[int | None, DiskKind] = {0: "SSD", 1: "hard disk"}
    return named or rotates.get(machine.integer(f"/sys/block/{disk}/queue/rotational"), "unknown")

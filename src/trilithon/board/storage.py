"""Disks as far as they matter here: what swap lies on, and how much room the folders have that Trilithon writes to."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from trilithon.board.sysfs import Machine

__all__ = ["Disk", "DiskKind", "Mount", "Swap", "mounts", "read_disks", "read_swaps"]

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


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo, proc(5). `number` is the device's ("8:1"), `root` the part of the file system
    that is seen at `point`; `options` are those of the mount and of the file system."""

    number: str
    root: str
    point: str
    kind: str
    source: str
    options: str


def mounts(machine: Machine) -> Iterator[Mount]:
    """In the kernel's order: a later one at the same point covers the earlier."""
    for line in (machine.text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 5 and len(tail) >= 2:
            options = ",".join((*fields[5:6], *tail[2:3]))
            yield Mount(fields[2], _plain(fields[3]), _plain(fields[4]), tail[0], _plain(tail[1]), options)


def _plain(name: str) -> str:
    """The kernel writes a space in a name as \\040."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda code: chr(int(code[1], 8)), name)


def read_swaps(machine: Machine) -> tuple[Swap, ...]:
    swaps = []
    for line in (machine.text("/proc/swaps") or "").splitlines():
        match = _ROW.fullmatch(line.strip())
        if match is None:
            continue
        path = _plain(match[1])
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
    """By the mount with the longest path above it."""
    above = [mount for mount in mounts(machine) if PurePosixPath(path).is_relative_to(mount.point)]
    if not above:
        return "unknown"
    mount = max(reversed(above), key=lambda mount: len(mount.point))  # the last one covers those before it
    if mount.kind in _FILE_SYSTEMS:
        return _FILE_SYSTEMS[mount.kind]
    by_number = (
        machine.link(f"/sys/dev/block/{mount.number}") if re.fullmatch(r"\d+:\d+", mount.number, re.ASCII) else None
    )
    return _kind(machine, by_number or PurePosixPath(mount.source).name)


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

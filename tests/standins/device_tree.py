"""Device trees: compiled files (.dtb) read, and planted as the kernel shows them in /proc/device-tree and /sys.

The format is that of the Devicetree Specification 0.4, chapter 5."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trilithon.board.sysfs import Machine

_MAGIC, _BEGIN, _END, _PROPERTY, _NOP, _LAST = 0xD00DFEED, 1, 2, 3, 4, 9

# What an Arm core says of itself in /proc/cpuinfo, by its entry in the device tree. Implementer 0x41 is Arm's. From the
# cores' technical reference manuals, MIDR_EL1.
PARTS = {
    "arm,cortex-a53": 0xD03,
    "arm,cortex-a35": 0xD04,
    "arm,cortex-a55": 0xD05,
    "arm,cortex-a57": 0xD07,
    "arm,cortex-a72": 0xD08,
    "arm,cortex-a73": 0xD09,
    "arm,cortex-a76": 0xD0B,
}


@dataclass
class Node:
    properties: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, "Node"] = field(default_factory=dict)

    def strings(self, name: str) -> tuple[str, ...]:
        return tuple(part.decode() for part in self.properties.get(name, b"").split(b"\0") if part)

    def integer(self, name: str) -> int | None:
        value = self.properties.get(name)
        return None if value is None else int.from_bytes(value)


def read_device_tree(file: Path) -> Node:
    """The root node of a .dtb. Raises ValueError for another file."""
    data = file.read_bytes()
    magic, _, structure, strings = struct.unpack_from(">4I", data)
    if magic != _MAGIC:
        raise ValueError(f"{file} is no device tree")

    def text(at: int) -> str:
        return data[at : data.index(b"\0", at)].decode()

    above, at = [Node()], structure
    while True:
        (token,) = struct.unpack_from(">I", data, at)
        at += 4
        if token == _BEGIN:
            name = text(at)
            at = (at + len(name) + 4) & ~3
            above.append(above[-1].children.setdefault(name, Node()))
        elif token == _END:
            above.pop()
        elif token == _PROPERTY:
            length, name_at = struct.unpack_from(">2I", data, at)
            above[-1].properties[text(strings + name_at)] = data[at + 8 : at + 8 + length]
            at = (at + 8 + length + 3) & ~3
        elif token == _LAST:
            return above[0].children[""]
        elif token != _NOP:
            raise ValueError(f"{file}: token {token} at {at}")


def cpus(root: Node) -> list[Node]:
    """The CPU nodes in the order of the kernel's numbers."""
    nodes = root.children["cpus"].children
    return [node for name, node in nodes.items() if re.fullmatch(r"cpu@[0-9a-f,]+", name)]


def plant_device_tree(root: Node, folder: Path) -> Machine:
    """What the kernel shows of it: the root's properties, the CPUs by their cores and relative capacities, and an
    architecture. The kernel scales `capacity-dmips-mhz` so that the fastest CPU has 1024."""
    files: dict[str, bytes] = {
        "/proc/device-tree/compatible": root.properties.get("compatible", b""),
        "/proc/device-tree/model": root.properties.get("model", b""),
        "/proc/sys/kernel/arch": b"aarch64\n",
    }
    nodes = cpus(root)
    files["/sys/devices/system/cpu/online"] = f"0-{len(nodes) - 1}\n".encode()
    capacities = [node.integer("capacity-dmips-mhz") for node in nodes]
    fastest = max((capacity for capacity in capacities if capacity), default=0)
    for number, capacity in enumerate(capacities):
        if capacity:
            scaled = f"{capacity * 1024 // fastest}\n".encode()
            files[f"/sys/devices/system/cpu/cpu{number}/cpu_capacity"] = scaled
    files["/proc/cpuinfo"] = "\n".join(_cpuinfo(nodes)).encode()
    for path, content in files.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return Machine(folder)


def _cpuinfo(nodes: list[Node]) -> Iterator[str]:
    for number, node in enumerate(nodes):
        part = next((PARTS[name] for name in node.strings("compatible") if name in PARTS), 0)
        yield f"processor\t: {number}\nCPU implementer\t: 0x41\nCPU part\t: 0x{part:03x}\n"


def device_tree_bytes(root: Node) -> bytes:
    """The .dtb of a root node."""
    names: dict[str, int] = {}
    strings = bytearray()
    structure = bytearray()

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    def add(name: str, node: Node) -> None:
        structure.extend(struct.pack(">I", _BEGIN) + padded(name.encode() + b"\0"))
        for key, value in node.properties.items():
            if key not in names:
                names[key] = len(strings)
                strings.extend(key.encode() + b"\0")
            structure.extend(struct.pack(">3I", _PROPERTY, len(value), names[key]) + padded(value))
        for child_name, child in node.children.items():
            add(child_name, child)
        structure.extend(struct.pack(">I", _END))

    add("", root)
    structure.extend(struct.pack(">I", _LAST))
    reserved, begin = bytes(16), 40 + 16
    sizes = (begin + len(structure) + len(strings), begin, begin + len(structure), 40)
    head = struct.pack(">10I", _MAGIC, *sizes, 17, 16, 0, len(strings), len(structure))
    return head + reserved + structure + strings

"""GPU and NPU: which kernel driver holds them, and whether this user may open their device nodes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilithon.board.devfreq import devfreq_entries
from trilithon.board.sysfs import Machine
from trilithon.language import Message
from trilithon.tables import table_beside

__all__ = ["DeviceNode", "Gpu", "Npu", "NpuDriver", "gpu_drivers", "read_gpu", "read_npu", "read_other_npus"]

NpuDriver = Literal["rknpu", "rocket", "none"]

# Render nodes that are not a GPU: the display controller and the NPU of the vendor kernel.
_NOT_A_GPU = {"RKNPU", "rockchip-drm", "vgem", "vkms"}
# The class of PCI's bridges, of which the chip's own root ports have Rockchip's number too.
_PCI_BRIDGE = "0x06"
# Drivers that make no render node of their own: the vendor's Mali driver and NVIDIA's.
_OTHER_GPU_NODES = {"/dev/mali0": "kbase", "/dev/nvidia0": "nvidia"}


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """`usable`: this user may open it for reading and writing."""

    path: str
    usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """`driver` is the kernel's: panthor, panfrost, kbase (the vendor's), amdgpu, …"""

    driver: str
    name: str | None
    nodes: tuple[DeviceNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Npu:
    """`driver`: the vendor's rknpu, mainline's rocket, or none although the chip has an NPU."""

    driver: NpuDriver
    version: str | None
    cores: int | None
    nodes: tuple[DeviceNode, ...]


def gpu_drivers(machine: Machine) -> dict[str, str]:
    """The device node of every GPU to the kernel driver behind it."""
    drivers = {node: driver for node, driver in _drm_drivers(machine, "renderD").items() if driver not in _NOT_A_GPU}
    return drivers | {node: driver for node, driver in _OTHER_GPU_NODES.items() if machine.exists(node)}


def read_gpu(machine: Machine, name: str | None) -> Gpu | None:
    """The first GPU; `name` is what the chip's own is called."""
    for node, driver in gpu_drivers(machine).items():
        return Gpu(driver=driver, name=name, nodes=_nodes(machine, [node]))
    return None


def read_npu(machine: Machine, cores: int | None) -> Npu | None:
    drm = _drm_drivers(machine, "card") | _drm_drivers(machine, "renderD")
    own = [node for node, driver in drm.items() if driver == "RKNPU"]
    if own or machine.exists("/dev/rknpu") or machine.exists("/sys/module/rknpu"):
        paths = own or [*machine.glob("/dev/rknpu"), *machine.glob("/dev/dma_heap/*")]
        version = machine.text("/sys/module/rknpu/version") or machine.text("/sys/kernel/debug/rknpu/version")
        number = re.search(r"\d{1,9}(\.\d{1,9}){1,3}", version or "", re.ASCII)
        return Npu(driver="rknpu", version=number[0] if number else None, cores=cores, nodes=_nodes(machine, paths))
    accelerators = machine.glob("/sys/class/accel/accel[0-9]*")
    paths = [
        f"/dev/accel/{Path(entry).name}" for entry in accelerators if machine.link(f"{entry}/device/driver") == "rocket"
    ]
    if paths:
        return Npu(driver="rocket", version=None, cores=cores, nodes=_nodes(machine, paths))
    return Npu(driver="none", version=None, cores=cores, nodes=()) if cores else None


def read_other_npus(machine: Machine, npu: Npu | None) -> tuple[str, ...]:
    """NPUs and coprocessors that no engine supports, each by its name and where it shows; `npu` is the one that is
    supported, or None."""
    tables = table_beside(__file__, "accelerators.toml")
    shown: list[str] = [
        _with_driver(name, key) for key, name in tables["modules"].items() if machine.exists(f"/sys/module/{key}")
    ]
    shown += [f"{name} ({node})" for node, name in tables["nodes"].items() if machine.exists(node)]
    shown += [*_pci_devices(machine, tables["pci"]), *_usb_devices(machine, tables["usb"])]
    drivers = (machine.link(f"{entry}/device/driver") for entry in machine.glob("/sys/class/accel/accel[0-9]*"))
    shown += [_with_driver("NPU", driver) for driver in drivers if driver not in (None, "rocket")]
    if not shown and npu is None:
        shown += [f"NPU ({Path(entry.folder).name})" for entry in devfreq_entries(machine) if entry.unit == "npu"]
        shown = shown or [f"NPU ({' '.join(names)})" for names in _device_tree_npus(machine)]
    return tuple(dict.fromkeys(shown))


def _with_driver(name: str, driver: str | None) -> Message:
    return Message("{name} (driver {driver})", name=name, driver=driver)


def _pci_devices(machine: Machine, makers: dict[str, str]) -> Iterator[str]:
    for folder in machine.glob("/sys/bus/pci/devices/*"):
        vendor, device, kind = (machine.text(f"{folder}/{name}") or "" for name in ("vendor", "device", "class"))
        if vendor in makers and not kind.startswith(_PCI_BRIDGE):
            yield f"{makers[vendor]} (PCI {vendor.removeprefix('0x')}:{device.removeprefix('0x')})"


def _usb_devices(machine: Machine, beginnings: dict[str, str]) -> Iterator[str]:
    for folder in machine.glob("/sys/bus/usb/devices/*"):
        number = ":".join(machine.text(f"{folder}/{name}") or "" for name in ("idVendor", "idProduct"))
        yield from (f"{name} (USB {number})" for beginning, name in beginnings.items() if number.startswith(beginning))


def _device_tree_npus(machine: Machine) -> Iterator[tuple[str, ...]]:
    """What the device tree calls its NPUs; a node without a driver shows nowhere else."""
    for folder in ("", "/soc*"):
        for path in machine.glob(f"/proc/device-tree{folder}/npu@*/compatible"):
            yield machine.strings(path) or ()


def _nodes(machine: Machine, paths: list[str]) -> tuple[DeviceNode, ...]:
    return tuple(DeviceNode(path, machine.usable(path)) for path in paths)


def _drm_drivers(machine: Machine, kind: str) -> dict[str, str]:
    """/dev/dri node to the driver behind it; `kind` is "card" or "renderD"."""
    drm_drivers = {}
    for entry in machine.glob(f"/sys/class/drm/{kind}[0-9]*"):
        driver = machine.link(f"{entry}/device/driver")
        if driver is not None:
            drm_drivers[f"/dev/dri/{Path(entry).name}"] = driver
    return drm_drivers

"""GPU and NPU: which kernel driver holds them, and whether this user may open their device nodes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trilithon.board.sysfs import Machine

__all__ = ["DeviceNode", "Gpu", "Npu", "NpuDriver", "gpu_drivers", "read_gpu", "read_npu"]

NpuDriver = Literal["rknpu", "rocket", "none"]

# Render nodes that are not a GPU: the display controller and the NPU of the vendor kernel.
_NOT_A_GPU = {"RKNPU", "rockchip-drm", "vgem", "vkms"}
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

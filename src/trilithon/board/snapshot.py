"""Board: one frozen picture of the machine, read from the kernel's files without root and without loading a driver."""

import json
import os
import re
import resource
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trilithon.board.processors import Cluster, big_cpus, chip_facts, physical_cores, read_clusters
from trilithon.board.sysfs import THIS_MACHINE, Machine, format_cpu_list

__all__ = ["Board", "Clock", "DeviceNode", "Gpu", "Npu", "read_board"]

NpuDriver = Literal["rknpu", "rocket", "none"]

# Render nodes that are not a GPU: the display controller and the NPU of the vendor kernel.
_NOT_A_GPU = {"RKNPU", "rockchip-drm", "vgem", "vkms"}
_UNNAMED_BOARDS = {"", "Default string", "System Product Name", "To Be Filled By O.E.M.", "To be filled by O.E.M."}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A devfreq clock: of the unit npu, gpu or memory; `device` is its entry in /sys/class/devfreq."""

    unit: Literal["npu", "gpu", "memory"]
    device: str
    current_hz: int | None
    max_hz: int | None
    governor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What this machine is. `chip` is "unknown" and `model` empty where nothing says it.

    `big_cpus` are the CPUs to run on by default: one per physical core, little cores left out. `npu` is None when
    the chip has none. `open_files_soft` and `open_files_hard` are this process's limits.
    """

    chip: str
    model: str
    architecture: str
    clusters: tuple[Cluster, ...]
    big_cpus: tuple[int, ...]
    physical_cores: int
    memory_bytes: int | None
    memory_available_bytes: int | None
    swap_bytes: int | None
    swap_used_bytes: int | None
    kernel: str
    operating_system: str
    in_container: bool
    gpu: Gpu | None
    npu: Npu | None
    clocks: tuple[Clock, ...]
    open_files_soft: int | None
    open_files_hard: int | None
    page_size_bytes: int | None

    def clock(self, unit: Literal["npu", "gpu", "memory"]) -> Clock | None:
        return next((clock for clock in self.clocks if clock.unit == unit), None)

    def describe(self) -> str:
        """ "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43"."""
        memory = "" if self.memory_bytes is None else _whole_gibibytes(self.memory_bytes)
        chip = "" if self.chip == "unknown" else self.chip
        kernel = f"Linux {self.kernel.split('-')[0]}"
        return " · ".join(part for part in (self.model, chip, self.describe_cores(), memory, kernel) if part)

    def describe_cores(self) -> str:
        """ "4×Cortex-A76 + 4×Cortex-A55", or "8 cores, 16 threads" where the cores have no name."""
        types: Counter[str | None] = Counter()
        for cluster in sorted(self.clusters, key=lambda cluster: cluster.kind == "little"):
            types[cluster.core_type] += len(cluster.cpus)
        if None not in types:
            return " + ".join(f"{count}×{name}" for name, count in types.items())
        cores, threads = self.physical_cores, types.total()
        return f"{cores} core{'s' * (cores != 1)}" + (f", {threads} threads" if threads != cores else "")

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values, with `describe()` as "description"."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"description": self.describe()} | facts

    def must_match(self) -> dict[str, str]:
        """What has to be equal before two results may be put together, as far as the machine goes."""
        memory = self.clock("memory")
        governors = (f"cpu{format_cpu_list(cluster.cpus)} {cluster.governor or 'none'}" for cluster in self.clusters)
        clocks = [(f"cpu{format_cpu_list(cluster.cpus)}", (cluster.max_khz or 0) / 1e3) for cluster in self.clusters]
        clocks += [("memory", ((memory.max_hz if memory else None) or 0) / 1e6)]
        return {
            "board": self.model,
            "chip": self.chip,
            "kernel": self.kernel,
            "governors": ", ".join(governors),
            "top clocks": ", ".join(f"{name} {clock:.0f} MHz" for name, clock in clocks if clock) or "unknown",
            "memory clock governor": (memory.governor if memory else None) or "none",
        }


def read_board(machine: Machine = THIS_MACHINE) -> Board:
    chip, npu_cores, gpu_name = _chip(machine)
    clusters = read_clusters(machine)
    memory = {name: _bytes(text) for name, text in machine.fields("/proc/meminfo").items()}
    swap, swap_free = memory.get("SwapTotal"), memory.get("SwapFree")
    limits = re.search(r"^Max open files\s+(\S+)\s+(\S+)", machine.text("/proc/self/limits") or "", re.MULTILINE)
    physical = physical_cores(machine, [cpu for cluster in clusters for cpu in cluster.cpus])
    return Board(
        chip=chip,
        model=_model(machine),
        architecture=machine.text("/proc/sys/kernel/arch") or (os.uname().machine if machine.is_this_one else ""),
        clusters=clusters,
        big_cpus=big_cpus(machine, clusters, physical),
        physical_cores=len(physical),
        memory_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        swap_bytes=swap,
        swap_used_bytes=None if swap is None or swap_free is None else swap - swap_free,
        kernel=machine.text("/proc/sys/kernel/osrelease") or "",
        operating_system=machine.fields("/etc/os-release", "=").get("PRETTY_NAME", "").strip("\"'"),
        in_container=_in_container(machine),
        gpu=_gpu(machine, gpu_name),
        npu=_npu(machine, npu_cores),
        clocks=_clocks(machine),
        open_files_soft=_limit(limits[1]) if limits else None,
        open_files_hard=_limit(limits[2]) if limits else None,
        page_size_bytes=resource.getpagesize() if machine.is_this_one else None,
    )


def _chip(machine: Machine) -> tuple[str, int | None, str | None]:
    """Name, NPU cores and GPU name. Vendor trees name a chip also as a prefix: "rockchip,rk3588s-orangepi-5"."""
    compatible = machine.strings("/proc/device-tree/compatible") or ()
    # The device tree goes from the special to the general: an RK3588S also calls itself an RK3588, and an RK3582
    # an RK3588S.
    for entry in compatible:
        for name, facts in chip_facts()["chips"].items():
            if entry == facts["compatible"] or entry.startswith(facts["compatible"] + "-"):
                return name, facts["npu_cores"], facts.get("gpu")
    if compatible:
        return compatible[-1], None, None
    name = machine.fields("/proc/cpuinfo").get("model name", "")
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\d+-Core Processor|@.*", " ", name)
    return " ".join(name.split()) or "unknown", None, None


def _model(machine: Machine) -> str:
    model = machine.text("/proc/device-tree/model")
    if model:
        return model
    names = (machine.text(f"/sys/class/dmi/id/{name}") or "" for name in ("product_name", "board_name"))
    return next((name for name in names if name not in _UNNAMED_BOARDS), "")


def _whole_gibibytes(count: int) -> str:
    """What is sold as 16 GiB shows 15.6 of it to the kernel: rounded, except where the half would matter."""
    return f"{count / 2**30:.0f} GiB" if count > 3.5 * 2**30 else f"{count / 2**30:.1f} GiB"


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+) kB", text)
    return int(match[1]) * 1024 if match else None


def _limit(text: str) -> int | None:
    return 2**63 - 1 if text == "unlimited" else int(text) if text.isdecimal() else None


def _in_container(machine: Machine) -> bool:
    marks = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
    return any(machine.exists(mark) for mark in marks) or bool(
        re.search(r"docker|lxc|kubepods|libpod", machine.text("/proc/1/cgroup") or "")
    )


def _nodes(machine: Machine, paths: list[str]) -> tuple[DeviceNode, ...]:
    return tuple(DeviceNode(path, machine.usable(path)) for path in paths)


def _drm_drivers(machine: Machine, kind: str) -> dict[str, str]:
    """/dev/dri node to the driver behind it; `kind` is "card" or "renderD"."""
    found = {}
    for entry in machine.glob(f"/sys/class/drm/{kind}[0-9]*"):
        driver = machine.link(f"{entry}/device/driver")
        if driver is not None:
            found[f"/dev/dri/{Path(entry).name}"] = driver
    return found


def _gpu(machine: Machine, name: str | None) -> Gpu | None:
    for node, driver in _drm_drivers(machine, "renderD").items():
        if driver not in _NOT_A_GPU:
            return Gpu(driver=driver, name=name, nodes=_nodes(machine, [node]))
    for node, driver in (("/dev/mali0", "kbase"), ("/dev/nvidia0", "nvidia")):
        if machine.exists(node):
            return Gpu(driver=driver, name=name, nodes=_nodes(machine, [node]))
    return None


def _npu(machine: Machine, cores: int | None) -> Npu | None:
    drm = _drm_drivers(machine, "card") | _drm_drivers(machine, "renderD")
    own = [node for node, driver in drm.items() if driver == "RKNPU"]
    if own or machine.exists("/dev/rknpu") or machine.exists("/sys/module/rknpu"):
        paths = own or [*machine.glob("/dev/rknpu"), *machine.glob("/dev/dma_heap/*")]
        version = machine.text("/sys/module/rknpu/version") or machine.text("/sys/kernel/debug/rknpu/version")
        number = re.search(r"\d+(\.\d+)+", version or "")
        return Npu(driver="rknpu", version=number[0] if number else None, cores=cores, nodes=_nodes(machine, paths))
    accelerators = machine.glob("/sys/class/accel/accel[0-9]*")
    paths = [
        f"/dev/accel/{Path(entry).name}" for entry in accelerators if machine.link(f"{entry}/device/driver") == "rocket"
    ]
    if paths:
        return Npu(driver="rocket", version=None, cores=cores, nodes=_nodes(machine, paths))
    return Npu(driver="none", version=None, cores=cores, nodes=()) if cores else None


def _clocks(machine: Machine) -> tuple[Clock, ...]:
    units: dict[str, Literal["npu", "gpu", "memory"]] = {"npu": "npu", "gpu": "gpu", "dmc": "memory"}
    clocks = []
    for entry in machine.glob("/sys/class/devfreq/*"):
        unit = units.get(Path(entry).name.rpartition(".")[2])
        if unit is None:
            continue
        # max_freq is what someone allows, not what the unit can: the table has the last word.
        table = machine.integers(f"{entry}/available_frequencies") or ()
        clocks.append(
            Clock(
                unit=unit,
                device=Path(entry).name,
                current_hz=machine.integer(f"{entry}/cur_freq"),
                max_hz=max((*table, machine.integer(f"{entry}/max_freq") or 0)) or None,
                governor=machine.text(f"{entry}/governor"),
            )
        )
    return tuple(clocks)

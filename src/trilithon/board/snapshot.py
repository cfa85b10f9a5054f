"""Board: one frozen picture of the machine, read from the kernel's files without root and without loading a driver."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.board.accelerators import DeviceNode, Gpu, Npu, gpu_drivers, read_gpu, read_npu, read_other_npus
from trilithon.board.chips import chip_of_device_tree, described_chip
from trilithon.board.devfreq import DevfreqUnit, devfreq_entries
from trilithon.board.libraries import NpuRuntime, find_runtimes
from trilithon.board.limits.cgroups import Limits, read_limits
from trilithon.board.limits.container import device_tree_hidden, read_container
from trilithon.board.limits.memory import read_memory
from trilithon.board.processors import Cluster, big_cpus, physical_cores, read_clusters
from trilithon.board.storage import Disk, Swap, read_disks, read_swaps
from trilithon.board.sysfs import THIS_MACHINE, Machine, format_cpu_list
from trilithon.board.vulkan import VulkanDriver, read_vulkan
from trilithon.language import Message, listed
from trilithon.units import format_bytes

__all__ = ["Board", "Clock", "DeviceNode", "Gpu", "Npu", "read_board", "whole_gibibytes"]

_UNNAMED_BOARDS = {"", "Default string", "System Product Name", "To Be Filled By O.E.M.", "To be filled by O.E.M."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A devfreq clock: of the unit npu, gpu or memory; `device` is its entry in /sys/class/devfreq. `max_hz` is the
    highest that the unit can, `limit_hz` the highest that it may now."""

    unit: DevfreqUnit
    device: str
    current_hz: int | None
    max_hz: int | None
    governor: str | None
    limit_hz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What this machine is. `chip` is "unknown" and `model` empty where nothing says it.

    `big_cpus` are the CPUs to run on by default: one per physical core, little cores left out, no more than a CPU quota
    keeps busy. Memory and swap that are available or used are within this process's `limits`. `npu` is None when the
    chip has none that is known; `other_npus` are those that no engine supports. `open_files_soft` and `open_files_hard`
    are this process's limits. `container` is a key of limits/container.toml, "" outside of containers.
    `device_tree_hidden`: a container or a service keeps it from an Arm board, and neither chip nor NPU can be told."""

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
    container: str
    device_tree_hidden: bool
    gpu: Gpu | None
    vulkan: tuple[VulkanDriver, ...]
    npu: Npu | None
    other_npus: tuple[str, ...]
    runtimes: tuple[NpuRuntime, ...]
    clocks: tuple[Clock, ...]
    swaps: tuple[Swap, ...]
    disks: tuple[Disk, ...]
    open_files_soft: int | None
    open_files_hard: int | None
    page_size_bytes: int | None
    limits: Limits

    def clock(self, unit: DevfreqUnit) -> Clock | None:
        return next((clock for clock in self.clocks if clock.unit == unit), None)

    @property
    def usable_memory_bytes(self) -> int | None:
        """All memory that this process could ever have."""
        counts = [count for count in (self.memory_bytes, self.limits.memory_bytes) if count is not None]
        return min(counts, default=None)

    def describe(self) -> str:
        """ "Orange Pi 5 Plus · RK3588 · 4×Cortex-A76 + 4×Cortex-A55 · 16 GiB · Linux 6.1.43"."""
        memory = "" if self.memory_bytes is None else whole_gibibytes(self.memory_bytes)
        chip = "" if self.chip == "unknown" else self.chip
        kernel = f"Linux {self.kernel.split('-')[0]}"
        return listed((part for part in (self.model, chip, self.describe_cores(), memory, kernel) if part), " · ")

    def describe_cores(self) -> str:
        """ "4×Cortex-A76 + 4×Cortex-A55", or "8 cores, 16 threads" where the cores have no name."""
        types: Counter[str | None] = Counter()
        for cluster in sorted(self.clusters, key=lambda cluster: cluster.kind == "little"):
            types[cluster.core_type] += len(cluster.cpus)
        if None not in types:
            return " + ".join(f"{count}×{name}" for name, count in types.items())
        cores, threads = self.physical_cores, types.total()
        text = Message("{count} core", plural="{count} cores", count=cores)
        if threads == cores:
            return text
        return listed((text, Message("{count} thread", plural="{count} threads", count=threads)))

    def identity(self) -> str:
        """The same for the same machine whatever it runs: model, chip, cores."""
        return " · ".join(part for part in (self.model, self.chip, self.describe_cores()) if part)

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
            **self._limited(),
        }

    def _limited(self) -> dict[str, str]:
        """Only the limits that there are: results of a version that read none stay comparable."""
        limits, facts = self.limits, {}
        online = {cpu for cluster in self.clusters for cpu in cluster.cpus}
        if limits.cpu_quota is not None:
            facts["CPU quota"] = f"{limits.cpu_quota:g}"
        if limits.cpuset is not None and online - set(limits.cpuset):
            facts["CPU set"] = format_cpu_list(limits.cpuset)
        if limits.memory_bytes is not None:
            facts["memory limit"] = format_bytes(limits.memory_bytes)
        return facts


def read_board(machine: Machine = THIS_MACHINE, folders: Sequence[Path] = ()) -> Board:
    """`folders` are those whose free disk is wanted."""
    chip, npu_cores, gpu_name = _chip(machine)
    limits = read_limits(machine)
    clusters = read_clusters(machine, limits)
    memory = read_memory(machine, limits)
    open_files = re.search(r"^Max open files\s+(\S+)\s+(\S+)", machine.text("/proc/self/limits") or "", re.MULTILINE)
    physical = physical_cores(machine, [cpu for cluster in clusters for cpu in cluster.cpus])
    # Under emulation the kernel, which has the device tree, is of another architecture than this process.
    kernel_architecture = machine.text("/proc/sys/kernel/arch") or machine.uname_machine
    architecture = machine.uname_machine or kernel_architecture
    container = read_container(machine)
    npu = read_npu(machine, npu_cores)
    return Board(
        chip=chip,
        model=_model(machine),
        architecture=architecture,
        clusters=clusters,
        big_cpus=big_cpus(machine, clusters, limits),
        physical_cores=len(physical),
        memory_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        swap_bytes=memory.swap_bytes,
        swap_used_bytes=memory.swap_used_bytes,
        kernel=machine.text("/proc/sys/kernel/osrelease") or "",
        operating_system=machine.fields("/etc/os-release", "=").get("PRETTY_NAME", "").strip("\"'"),
        in_container=bool(container),
        container=container,
        device_tree_hidden=kernel_architecture == "aarch64" and device_tree_hidden(machine),
        gpu=read_gpu(machine, gpu_name),
        vulkan=read_vulkan(machine, gpu_drivers(machine).values()),
        npu=npu,
        other_npus=read_other_npus(machine, npu),
        runtimes=find_runtimes(machine),
        clocks=_clocks(machine),
        swaps=read_swaps(machine),
        disks=read_disks(machine, folders),
        open_files_soft=_limit(open_files[1]) if open_files else None,
        open_files_hard=_limit(open_files[2]) if open_files else None,
        page_size_bytes=machine.page_bytes,
        limits=limits,
    )


def _chip(machine: Machine) -> tuple[str, int | None, str | None]:
    """Name, NPU cores and GPU name."""
    compatible = machine.strings("/proc/device-tree/compatible") or ()
    if chip := chip_of_device_tree(compatible):
        return chip.name, chip.npu_cores, chip.gpu
    if compatible:
        return described_chip(compatible), None, None
    name = machine.fields("/proc/cpuinfo").get("model name", "")
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\d+-Core Processor|@.*", " ", name)
    return " ".join(name.split()) or "unknown", None, None


def _model(machine: Machine) -> str:
    model = machine.text("/proc/device-tree/model")
    if model:
        return model
    names = (machine.text(f"/sys/class/dmi/id/{name}") or "" for name in ("product_name", "board_name"))
    return next((name for name in names if name not in _UNNAMED_BOARDS), "")


def whole_gibibytes(count: int) -> str:
    """What is sold as 16 GiB shows 15.6 of it to the kernel: rounded, except where the half would matter."""
    size = count / 2**30
    return Message("{size:.0f} GiB", size=size) if count > 3.5 * 2**30 else Message("{size:.1f} GiB", size=size)


def _limit(text: str) -> int | None:
    number = re.fullmatch(r"\d{1,19}", text, re.ASCII)
    return 2**63 - 1 if text == "unlimited" else int(text) if number else None


def _clocks(machine: Machine) -> tuple[Clock, ...]:
    clocks = []
    for entry in devfreq_entries(machine):
        # max_freq is what someone allows, not what the unit can: the table has the last word.
        table = machine.integers(f"{entry.folder}/available_frequencies") or ()
        current, limit = (machine.integer(f"{entry.folder}/{name}") for name in ("cur_freq", "max_freq"))
        clocks.append(
            Clock(
                unit=entry.unit,
                device=Path(entry.folder).name,
                current_hz=current,
                max_hz=max((*(table or (current or 0,)), limit or 0)) or None,
                governor=machine.text(f"{entry.folder}/governor"),
                limit_hz=limit,
            )
        )
    return tuple(clocks)

"""What is wrong with this machine, or would make its numbers wrong, in one line each and with what mends it.

A rule looks at a Board (and at the machine for what a Board does not hold) and yields findings; `RULES` lists them
in the order to show. Findings about engines are not made here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine, format_cpu_list
from trilithon.units import format_bytes

__all__ = ["RULES", "Finding", "Severity", "findings"]

Severity = Literal["good", "note", "warning", "problem"]

# The NPU back end of llama.cpp opens one file per buffer, some 1,500 per prompt, and crashes at the usual 1,024.
OPEN_FILES = 65_536
# Parked memory is reported at a quarter of its top clock (RK3588: 528 of 2112 MHz), where it halves decode.
PARKED_FRACTION = 0.75
# Pages that a desktop left in swap long ago are no fault; more than this was needed by something.
SWAP_BYTES = 64 * 2**20
# What a 1B model takes at 4 bits, with its cache.
LITTLE_MEMORY_BYTES = 2**30
# "userspace" means that someone set the clock by hand, as the vendor's benchmark scripts do.
PINNED_GOVERNORS = {"performance", "userspace"}

_LARGEST_PROGRAMS = "ps -eo rss,comm --sort=-rss | head  # and close what is not needed"


@dataclass(frozen=True, slots=True)
class Finding:
    """`message` is one line; `mend` is the command that puts it right, empty where no single command does."""

    severity: Severity
    subject: str
    message: str
    mend: str = ""


def findings(board: Board, machine: Machine) -> list[Finding]:
    return [finding for rule in RULES for finding in rule(board, machine)]


def _governors(board: Board, machine: Machine) -> Iterator[Finding]:
    """On Arm boards: an x86 CPU under "powersave" runs at full speed all the same, its firmware sees to it."""
    if board.architecture != "aarch64":
        return
    governed = [cluster for cluster in board.clusters if cluster.governor]
    slow = [cluster for cluster in governed if cluster.governor not in PINNED_GOVERNORS]
    if slow:
        which = ", ".join(f"cpu{format_cpu_list(cluster.cpus)} {cluster.governor}" for cluster in slow)
        mend = "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        yield Finding("warning", "CPU clocks", f"the governor is not performance: {which}; rates vary and fall", mend)
    elif governed:
        yield Finding("good", "CPU clocks", "the governor keeps every CPU at its clock")


def _npu_clock(board: Board, machine: Machine) -> Iterator[Finding]:
    clock = board.clock("npu")
    if clock and clock.governor and clock.governor not in PINNED_GOVERNORS:
        mend = f"echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        yield Finding("warning", "NPU clock", f"the governor is {clock.governor}; it can halve the NPU's rate", mend)


def _memory_clock(board: Board, machine: Machine) -> Iterator[Finding]:
    clock = board.clock("memory")
    if clock is None or not clock.current_hz or not clock.max_hz:
        return
    speeds = f"{clock.current_hz / 1e6:.0f} of {clock.max_hz / 1e6:.0f} MHz (governor {clock.governor or 'unknown'})"
    if clock.current_hz < PARKED_FRACTION * clock.max_hz:
        message = f"parked at {speeds}: it hardly rises for the NPU, whose decode it can halve"
        mend = f"echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        yield Finding("warning", "memory clock", message, mend)
    else:
        yield Finding("good", "memory clock", speeds)


def _little_cores(board: Board, machine: Machine) -> Iterator[Finding]:
    little = [cluster for cluster in board.clusters if cluster.kind == "little"]
    if not little:
        return
    cpus = format_cpu_list([cpu for cluster in little for cpu in cluster.cpus])
    used = format_cpu_list(board.big_cpus)
    yield Finding("note", "little cores", f"cpu{cpus} are little cores and slow the others: cpu{used} will be used")


def _npu_driver(board: Board, machine: Machine) -> Iterator[Finding]:
    npu = board.npu
    if npu is None or npu.driver == "rknpu":
        return
    lacks = (
        f"mainline's driver {npu.driver} cannot run language models"
        if npu.driver == "rocket"
        else "the kernel has no driver for it"
    )
    message = f"Linux {board.kernel}: {lacks}; boot a system with the vendor kernel (rknpu 0.9.8)"
    armbian = machine.exists("/etc/armbian-release")
    mend = "sudo apt install linux-image-vendor-rk35xx linux-dtb-vendor-rk35xx && sudo reboot" if armbian else ""
    yield Finding("warning", "NPU", message, mend)


def _npu_nodes(board: Board, machine: Machine) -> Iterator[Finding]:
    npu = board.npu
    if npu is None or npu.driver != "rknpu":
        return
    closed = [node.path for node in npu.nodes if not node.usable]
    if not npu.nodes:
        message = "the driver is there and no device node: /dev/dri is not passed into this container"
        yield Finding("problem", "NPU", message, "docker run --device /dev/dri --device /dev/dma_heap …")
    elif not closed:
        yield Finding("good", "NPU", f"vendor driver {npu.version or 'of unknown version'}, open to this user")
    else:
        message = f"this user may not open {', '.join(closed)}"
        yield Finding("problem", "NPU", message, _node_mend(closed))


def _node_mend(closed: list[str]) -> str:
    if all(path.startswith("/dev/dri/") for path in closed):
        return "sudo usermod -aG render,video $USER  # then log in again"
    rule = 'SUBSYSTEM=="misc|dma_heap", KERNEL=="rknpu|cma*|system*", GROUP="video", MODE="0660"'
    return f"echo '{rule}' | sudo tee /etc/udev/rules.d/99-npu.rules && sudo usermod -aG video $USER && sudo reboot"


def _open_files(board: Board, machine: Machine) -> Iterator[Finding]:
    soft, hard = board.open_files_soft, board.open_files_hard
    if board.npu is None or board.npu.driver != "rknpu" or soft is None or hard is None or soft >= OPEN_FILES:
        return
    if hard >= OPEN_FILES:
        message = f"limit {soft:,}; NPU engines need {OPEN_FILES:,}, which the hard limit allows"
        yield Finding("note", "open files", message, f"ulimit -n {OPEN_FILES}")
    else:
        message = f"limit {hard:,}; NPU engines need {OPEN_FILES:,} and crash without"
        file = "/etc/security/limits.d/npu.conf"
        yield Finding(
            "warning", "open files", message, f"echo '* - nofile {OPEN_FILES}' | sudo tee {file}  # then log in again"
        )


def _swap(board: Board, machine: Machine) -> Iterator[Finding]:
    used, available = board.swap_used_bytes, board.memory_available_bytes
    if used is None or used < SWAP_BYTES:
        return
    fits = available is not None and available - used > LITTLE_MEMORY_BYTES
    mend = "sudo swapoff -a && sudo swapon -a" if fits else _LARGEST_PROGRAMS
    yield Finding("warning", "swap", f"{format_bytes(used)} are in swap; reading them back slows a run", mend)


def _memory(board: Board, machine: Machine) -> Iterator[Finding]:
    available = board.memory_available_bytes
    if available is not None and available < LITTLE_MEMORY_BYTES:
        message = (
            f"{format_bytes(available)} available; a 1B model at 4 bits takes about {LITTLE_MEMORY_BYTES >> 30} GiB"
        )
        yield Finding("warning", "memory", message, _LARGEST_PROGRAMS)


def _container(board: Board, machine: Machine) -> Iterator[Finding]:
    """A server without device tree has DMI tables in its place; a board has nothing else that says its name."""
    hidden = not machine.strings("/proc/device-tree/compatible") and not machine.exists("/sys/class/dmi/id")
    if board.in_container and board.architecture == "aarch64" and hidden:
        message = "it hides the device tree: chip and NPU cannot be told, and the vendor runtimes fail"
        mend = "docker run --security-opt systempaths=unconfined --device /dev/dri --device /dev/dma_heap …"
        yield Finding("warning", "container", message, mend)


def _software_vulkan(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.gpu and board.gpu.driver == "kbase":
        message = "the vendor's driver (kbase) holds it, so Mesa's Vulkan is software; use the CPU or the NPU"
        yield Finding("note", "GPU", message)


RULES: tuple[Callable[[Board, Machine], Iterator[Finding]], ...] = (
    _governors,
    _npu_clock,
    _memory_clock,
    _little_cores,
    _npu_driver,
    _npu_nodes,
    _open_files,
    _swap,
    _memory,
    _container,
    _software_vulkan,
)

"""Findings about clocks: governors, limits, memory parked, slowed by heat or by a weak power supply, little cores."""

import re
from collections.abc import Iterable, Iterator

from trilithon.board.chips import find_chip
from trilithon.board.cooling import CoolingDevice, is_cooled, read_cooling
from trilithon.board.finding import Finding, Rule
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine, format_cpu_list, parse_time_in_state

__all__ = ["RULES"]

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
# Parked memory is reported at a quarter of its top clock (RK3588: 528 of 2112 MHz), where it halves decode.
_PARKED_FRACTION = 0.75
# "userspace" means that someone set the clock by hand, as the vendor's benchmark scripts do.
_PINNED_GOVERNORS = {"performance", "userspace"}
# These set an x86 CPU's clock themselves, whatever the governor is called.
_OWN_WILL = re.compile(r"intel_pstate|amd[-_]pstate|intel_cpufreq")
# A limit a little under the top is a matter of rounding, or of turbo counted in by some drivers.
_LIMITED_FRACTION = 0.95
_COOLED_MILLISECONDS = 1000
# A pinned clock is at its top but for the seconds of booting; a minute must have passed to say so.
_SLOWED_FRACTION = 0.05
_LEAST_TICKS = 60 * 100


def _governors(board: Board, machine: Machine) -> Iterator[Finding]:
    fix = f"echo performance | sudo tee {_CPUFREQ}/policy*/scaling_governor"
    governed = [cluster for cluster in board.clusters if cluster.governor]
    slow = [cluster for cluster in governed if cluster.governor not in _PINNED_GOVERNORS]
    if board.architecture != "aarch64":
        driver = machine.text(f"{_CPUFREQ}/policy0/scaling_driver")
        slow = [] if driver is None or _OWN_WILL.search(driver) else [c for c in slow if c.governor == "powersave"]
        governed = []
    if slow:
        which = ", ".join(f"cpu{format_cpu_list(cluster.cpus)} {cluster.governor}" for cluster in slow)
        message = f"the governor is not performance: {which}; rates vary and fall"
        yield Finding("cpu-governor", "warning", "CPU clocks", message, fix)
    elif governed:
        yield Finding("cpu-governor", "good", "CPU clocks", "no governor lowers the CPUs' clocks")


def _limits(board: Board, machine: Machine) -> Iterator[Finding]:
    """Heat lowers the same limit: what is being cooled is told by `_throttled`."""
    limited: dict[tuple[int, int], list[int]] = {}
    for policy in machine.glob(f"{_CPUFREQ}/policy*"):
        limit, top = (machine.integer(f"{policy}/{name}") for name in ("scaling_max_freq", "cpuinfo_max_freq"))
        if limit and top and limit < _LIMITED_FRACTION * top:
            limited.setdefault((limit, top), []).extend(machine.cpus(f"{policy}/related_cpus") or ())
    low = [
        f"cpu{format_cpu_list(cpus)} {limit / 1e3:.0f} of {top / 1e3:.0f} MHz" for (limit, top), cpus in limited.items()
    ]
    if low and not is_cooled(machine):
        loop = f"for p in {_CPUFREQ}/policy*; do cat $p/cpuinfo_max_freq > $p/scaling_max_freq; done"
        yield Finding("cpu-limit", "warning", "CPU clocks", f"limited to {', '.join(low)}", f"sudo sh -c '{loop}'")


def _npu_governor(board: Board, machine: Machine) -> Iterator[Finding]:
    clock = board.clock("npu")
    if clock and clock.governor and clock.governor not in _PINNED_GOVERNORS:
        fix = f"echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        message = f"the governor is {clock.governor}; it can halve the NPU's rate"
        yield Finding("npu-governor", "warning", "NPU clock", message, fix)


def _memory_clock(board: Board, machine: Machine) -> Iterator[Finding]:
    clock = board.clock("memory")
    if clock is None or not clock.current_hz or not clock.max_hz:
        return
    speeds = f"{clock.current_hz / 1e6:.0f} of {clock.max_hz / 1e6:.0f} MHz (governor {clock.governor or 'unknown'})"
    if clock.current_hz < _PARKED_FRACTION * clock.max_hz:
        message = f"parked at {speeds}: it hardly rises for the NPU, whose decode it can halve"
        fix = f"echo performance | sudo tee /sys/class/devfreq/{clock.device}/governor"
        yield Finding("memory-clock", "warning", "memory clock", message, fix)
    else:
        yield Finding("memory-clock", "good", "memory clock", speeds)


def _memory_clock_absent(board: Board, machine: Machine) -> Iterator[Finding]:
    chip = find_chip(board.chip)
    if board.clock("memory") is None and chip and chip.npu_cores:
        message = "the kernel offers no control over it (no devfreq/dmc): it is what the firmware set at boot"
        fix = "sudo grep -i ddr /sys/kernel/debug/clk/clk_summary  # what it is now"
        yield Finding("memory-clock-absent", "note", "memory clock", message, fix)


def _throttled(board: Board, machine: Machine) -> Iterator[Finding]:
    devices = read_cooling(machine)
    now = [f"{device.name} at step {device.step}" for device in devices if device.step]
    told = (*_cooled_since_boot(devices), *_below_top(machine), *_counted(machine))
    if now or told:
        message = f"slowed by heat now: {', '.join(now)}" if now else f"was slowed: {'; '.join(told)}"
        fix = "grep . /sys/class/thermal/thermal_zone*/temp  # 75000 and more under load: add a heat sink or a fan"
        yield Finding("throttled", "warning" if now else "note", "heat", message, fix)


def _cooled_since_boot(devices: Iterable[CoolingDevice]) -> Iterator[str]:
    for device in devices:
        slowed = device.slowed_milliseconds
        if slowed is not None and slowed >= _COOLED_MILLISECONDS:
            yield f"{device.name} for {slowed // 1000:,} s since boot, by heat"


def _below_top(machine: Machine) -> Iterator[str]:
    """Under "performance" a CPU leaves its top clock only when something takes it away."""
    for policy in machine.glob(f"{_CPUFREQ}/policy*"):
        ticks = machine.parsed(f"{policy}/stats/time_in_state", parse_time_in_state)
        if not ticks or machine.text(f"{policy}/scaling_governor") != "performance" or min(ticks.values()) < 0:
            continue
        total = sum(ticks.values())
        slowed = total - ticks[max(ticks)]
        if total >= _LEAST_TICKS and slowed > _SLOWED_FRACTION * total:
            cpus = format_cpu_list(machine.cpus(f"{policy}/related_cpus") or ())
            part = f"{slowed / total:.0%} of the time since boot"
            yield f"cpu{cpus} below its top clock {part}, by heat or before it was pinned"


def _counted(machine: Machine) -> Iterator[str]:
    """x86 counts for each package, and shows the count at each of its CPUs."""
    paths = machine.glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    most = max((machine.integer(path) or 0 for path in paths), default=0)
    if most > 0:
        yield f"the CPU counted {most:,} times since boot, by heat"


def _under_voltage(board: Board, machine: Machine) -> Iterator[Finding]:
    """The Raspberry Pi's firmware keeps the alarm until the next boot (drivers/hwmon/raspberrypi-hwmon.c)."""
    for folder in machine.glob("/sys/class/hwmon/hwmon*"):
        if machine.text(f"{folder}/name") == "rpi_volt" and machine.integer(f"{folder}/in0_lcrit_alarm"):
            message = "the supply fell under 4.63 V since boot, and the firmware lowers clocks when it does"
            fix = f"cat {folder}/in0_lcrit_alarm  # 1 again after a new boot: take a stronger supply or a better cable"
            yield Finding("under-voltage", "warning", "power", message, fix)


def _little_cores(board: Board, machine: Machine) -> Iterator[Finding]:
    little = [cluster for cluster in board.clusters if cluster.kind == "little"]
    if little:
        cpus = format_cpu_list([cpu for cluster in little for cpu in cluster.cpus])
        used = format_cpu_list(board.big_cpus)
        message = f"cpu{cpus} are little cores and slow the others: cpu{used} will be used"
        yield Finding("little-cores", "note", "little cores", message)


RULES: tuple[Rule, ...] = (
    _governors,
    _limits,
    _npu_governor,
    _memory_clock,
    _memory_clock_absent,
    _throttled,
    _under_voltage,
    _little_cores,
)

"""Findings about clocks: governors, limits, clocks held low, slowed by heat or by a weak power supply, little cores."""

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import TypedDict

from trilithon.board.chips import find_chip
from trilithon.board.cooling import CoolingDevice, is_cooled, read_cooling
from trilithon.board.finding import UNTIL_BOOT, Finding, Rule
from trilithon.board.snapshot import Board, Clock
from trilithon.board.sysfs import Machine, format_cpu_list, parse_time_in_state
from trilithon.language import Message, all_of, listed

__all__ = ["RULES"]

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
# Parked memory is reported at a quarter of its top clock (RK3588: 528 of 2112 MHz), where it halves decode.
_PARKED_FRACTION = 0.75
# "userspace" means that someone set the clock by hand, as the vendor's benchmark scripts do.
_PINNED_GOVERNORS = {"performance", "userspace"}
# These set an x86 CPU's clock themselves, whatever the governor is called.
_OWN_WILL = re.compile(r"intel_pstate|amd[-_]pstate|intel_cpufreq")
# These leave a clock where it is, however much there is to do.
_HOLDING_GOVERNORS = {"userspace", "powersave"}
# A limit a little under the top is a matter of rounding, or of turbo counted in by some drivers.
_LIMITED_FRACTION = 0.95
_COOLED_MILLISECONDS = 1000
# A pinned clock is at its top but for the seconds of booting; a minute must have passed to say so.
_SLOWED_FRACTION = 0.05
_LEAST_TICKS = 60 * 100


def _governors(board: Board, machine: Machine) -> Iterator[Finding]:
    fix = f"echo performance | sudo tee {_CPUFREQ}/policy*/scaling_governor"
    lasting = _at_boot([(f"{_CPUFREQ}/policy*/scaling_governor", "performance")], "governor")
    held = [*_held_policies(machine)]
    governed = [cluster for cluster in board.clusters if cluster.governor]
    slow = [cluster for cluster in governed if cluster.governor not in _PINNED_GOVERNORS]
    if board.architecture != "aarch64":
        driver = machine.text(f"{_CPUFREQ}/policy0/scaling_driver")
        slow = [] if driver is None or _OWN_WILL.search(driver) else [c for c in slow if c.governor == "powersave"]
        governed = []
    if held:
        message = Message("held low by the governor userspace: {clocks}", clocks=listed(held))
        yield Finding("cpu-clock", "warning", "CPU clocks", message, fix, until=UNTIL_BOOT, lasting=lasting)
    if slow:
        which = ", ".join(f"cpu{format_cpu_list(cluster.cpus)} {cluster.governor}" for cluster in slow)
        message = Message("the governor is not performance: {governors}; rates vary and fall", governors=which)
        yield Finding("cpu-governor", "warning", "CPU clocks", message, fix, until=UNTIL_BOOT, lasting=lasting)
    elif governed and not held:
        message = Message("no governor lowers the CPUs' clocks")
        yield Finding("cpu-governor", "good", "CPU clocks", message)


def _held_policies(machine: Machine) -> Iterator[str]:
    """The CPUs whose clock someone has set, to less than their top."""
    clocks: dict[tuple[int, int], list[int]] = {}
    for policy in machine.glob(f"{_CPUFREQ}/policy*"):
        current, top = (machine.integer(f"{policy}/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
        userspace = machine.text(f"{policy}/scaling_governor") == "userspace"
        if userspace and current and top and current < _LIMITED_FRACTION * top:
            clocks.setdefault((current, top), []).extend(machine.cpus(f"{policy}/related_cpus") or ())
    for (current, top), cpus in clocks.items():
        yield _low_clock(cpus, current, top)


def _low_clock(cpus: Iterable[int], khz: int, top_khz: int) -> Message:
    """ "cpu4-7 1200 of 2400 MHz"."""
    clock, top = khz / 1e3, top_khz / 1e3
    return Message("cpu{cpus} {clock:.0f} of {top:.0f} MHz", cpus=format_cpu_list(sorted(cpus)), clock=clock, top=top)


def _no_cpufreq(board: Board, machine: Machine) -> Iterator[Finding]:
    """/sys is absent from some containers, and then says nothing about the kernel."""
    folder = _CPUFREQ.rpartition("/")[0]
    if machine.exists(folder) and not machine.glob(f"{_CPUFREQ}/policy*"):
        message = Message(
            "the kernel does not control them (no cpufreq): they are what the firmware or a hypervisor has set"
        )
        yield Finding("cpufreq-absent", "note", "CPU clocks", message, "trilithon doctor --measure-clocks", look=True)


def _limits(board: Board, machine: Machine) -> Iterator[Finding]:
    """Heat lowers the same limit: what is being cooled is told by `_throttled`."""
    limited: dict[tuple[int, int], list[int]] = {}
    tops: list[tuple[str, str]] = []
    for policy in machine.glob(f"{_CPUFREQ}/policy*"):
        limit, top = (machine.integer(f"{policy}/{name}") for name in ("scaling_max_freq", "cpuinfo_max_freq"))
        if limit and top and limit < _LIMITED_FRACTION * top:
            limited.setdefault((limit, top), []).extend(machine.cpus(f"{policy}/related_cpus") or ())
            tops.append((f"{policy}/scaling_max_freq", str(top)))
    low = [_low_clock(cpus, limit, top) for (limit, top), cpus in limited.items()]
    if low and not is_cooled(machine):
        loop = f"for p in {_CPUFREQ}/policy*; do cat $p/cpuinfo_max_freq > $p/scaling_max_freq; done"
        message = Message("limited to {clocks}", clocks=listed(low))
        fix, lasting = f"sudo sh -c '{loop}'", _at_boot(tops, "limit")
        yield Finding("cpu-limit", "warning", "CPU clocks", message, fix, until=UNTIL_BOOT, lasting=lasting)


def _held_units(board: Board, machine: Machine) -> Iterator[Finding]:
    """Nothing is said of an NPU that no engine can use, and nothing advised about such a GPU."""
    usable = _usable_units(board)
    npu, gpu = board.clock("npu"), board.clock("gpu")
    if npu and "npu" in usable and (message := _held(npu, machine)):
        yield Finding("npu-clock", "warning", "NPU clock", message, **_raised(npu, machine))
    elif npu and "npu" in usable and npu.governor and npu.governor not in _PINNED_GOVERNORS:
        message = Message("the governor is {governor}; it can halve the NPU's rate", governor=npu.governor)
        yield Finding("npu-governor", "warning", "NPU clock", message, **_raised(npu, machine))
    if gpu and board.gpu and (message := _held(gpu, machine)):
        if "gpu" in usable:
            yield Finding("gpu-clock", "warning", "GPU clock", message, **_raised(gpu, machine))
        else:
            message = Message("{clock}; no engine here can use this GPU", clock=message)
            yield Finding("gpu-clock", "note", "GPU clock", message)


def _usable_units(board: Board) -> set[str]:
    """The units of this board that an engine could use. In a container that hides the chip any vendor's NPU may be."""
    usable = set()
    chip = find_chip(board.chip)
    engines = [chip.rkllm, chip.rk_llama_cpp] if chip else [None if board.device_tree_hidden else False]
    if board.npu and board.npu.driver == "rknpu" and any(engine is not False for engine in engines):
        usable.add("npu")
    if board.gpu and any(driver.serves for driver in board.vulkan):
        usable.add("gpu")
    return usable


def _held(clock: Clock, machine: Machine) -> str:
    """What keeps a clock below its top, or empty. Heat lowers the same limit, which is told by `_throttled`."""
    top, current, limit = clock.max_hz, clock.current_hz, clock.limit_hz
    if not top:
        return ""
    held_by = []
    low = top
    if limit and limit < _LIMITED_FRACTION * top and not is_cooled(machine):
        low = limit
        held_by.append(Message("max_freq allows no more"))
    if clock.governor in _HOLDING_GOVERNORS and current and current < _LIMITED_FRACTION * top:
        low = min(low, current)
        held_by.insert(0, Message("the governor {governor} holds it there", governor=clock.governor))
    if not held_by:
        return ""
    return Message("{clock:.0f} of {top:.0f} MHz: {reasons}", clock=low / 1e6, top=top / 1e6, reasons=all_of(held_by))


class _Cure(TypedDict, total=False):
    fix: str
    look: bool
    until: str
    lasting: str


def _at_boot(values: Iterable[tuple[str, str]], name: str) -> str:
    """The command that has systemd write values at each boot: tmpfiles.d(5), where paths may have wildcards."""
    lines = " ".join(shlex.quote(f"w {path} - - - - {value}") for path, value in values)
    return f"printf '%s\\n' {lines} | sudo tee /etc/tmpfiles.d/cpu-{name}.conf"


def _raised(clock: Clock, machine: Machine) -> _Cure:
    """What keeps a devfreq clock at its top: the commands, and udev's rule for each boot."""
    folder = f"/sys/class/devfreq/{shlex.quote(clock.device)}"
    governors = (machine.text(f"{folder}/available_governors") or "performance").split()
    values: list[tuple[str, str]] = []
    if clock.limit_hz and clock.max_hz and clock.limit_hz < clock.max_hz:
        values.append(("max_freq", str(clock.max_hz)))
    if "performance" in governors and clock.governor != "performance":
        values.append(("governor", "performance"))
    elif clock.governor == "userspace":
        values.append(("userspace/set_freq", str(clock.max_hz)))
    if not values:
        return {"fix": ""}
    rule = ", ".join(f'ATTR{{{name}}}="{value}"' for name, value in values)
    rule = f'SUBSYSTEM=="devfreq", KERNEL=="{clock.device}", {rule}'
    file = f"/etc/udev/rules.d/99-devfreq-{shlex.quote(clock.device)}.rules"
    return {
        "fix": " && ".join(f"echo {value} | sudo tee {folder}/{name}" for name, value in values),
        "until": UNTIL_BOOT,
        "lasting": f"echo {shlex.quote(rule)} | sudo tee {file}",
    }


def _memory_clock(board: Board, machine: Machine) -> Iterator[Finding]:
    clock = board.clock("memory")
    if clock is None or not clock.current_hz or not clock.max_hz:
        return
    speeds = Message(
        "{clock:.0f} of {top:.0f} MHz (governor {governor})",
        clock=clock.current_hz / 1e6,
        top=clock.max_hz / 1e6,
        governor=clock.governor or Message("unknown"),
    )
    if clock.current_hz < _PARKED_FRACTION * clock.max_hz or _held(clock, machine):
        effect = Message("decode waits for memory")
        if board.npu:
            effect = Message("it hardly rises for the NPU, whose decode it can halve")
        message = Message("parked at {speeds}: {effect}", speeds=speeds, effect=effect)
        cure = _raised(clock, machine)
        if not cure["fix"]:
            cure = {"fix": f"grep . /sys/class/devfreq/{shlex.quote(clock.device)}/*_freq", "look": True}
        yield Finding("memory-clock", "warning", "memory clock", message, **cure)
    else:
        yield Finding("memory-clock", "good", "memory clock", speeds)


def _memory_clock_absent(board: Board, machine: Machine) -> Iterator[Finding]:
    chip = find_chip(board.chip)
    if board.clock("memory") is None and chip and chip.npu_cores:
        message = Message("the kernel offers no control over it (no devfreq/dmc): it is what the firmware set at boot")
        fix = Message("sudo grep -i ddr /sys/kernel/debug/clk/clk_summary  # what it is now")
        yield Finding("memory-clock-absent", "note", "memory clock", message, fix, look=True)


def _throttled(board: Board, machine: Machine) -> Iterator[Finding]:
    devices = read_cooling(machine)
    now = [
        Message("{device} at step {step}", device=device.name, step=device.step) for device in devices if device.step
    ]
    counted = any("cpufreq" in device.name and device.slowed_milliseconds is not None for device in devices)
    below_top = () if counted else _below_top(machine)
    past = (*_cooled_since_boot(devices), *below_top, *_counted(machine))
    if now or past:
        message = Message("was slowed: {devices}", devices=listed(past, "; "))
        if now:
            message = Message("slowed by heat now: {devices}", devices=listed(now))
        fix = Message(
            "grep . /sys/class/thermal/thermal_zone*/temp  # 75000 and more under load: add a heat sink or a fan"
        )
        yield Finding("throttled", "warning" if now else "note", "heat", message, fix, look=True)


def _cooled_since_boot(devices: Iterable[CoolingDevice]) -> Iterator[str]:
    for device in devices:
        slowed = device.slowed_milliseconds
        if slowed is not None and slowed >= _COOLED_MILLISECONDS:
            seconds = slowed // 1000
            yield Message("{device} for {seconds:,} s since boot, by heat", device=device.name, seconds=seconds)


def _below_top(machine: Machine) -> Iterator[str]:
    """Under "performance" a CPU leaves its top clock only when something takes it away: heat, step by step from the
    top. A CPU that has rested at its lowest clock had another governor before."""
    for policy in machine.glob(f"{_CPUFREQ}/policy*"):
        ticks = machine.parsed(f"{policy}/stats/time_in_state", parse_time_in_state)
        if not ticks or machine.text(f"{policy}/scaling_governor") != "performance" or min(ticks.values()) < 0:
            continue
        total = sum(ticks.values())
        slowed = total - ticks[max(ticks)]
        pinned_since_boot = ticks[min(ticks)] <= _SLOWED_FRACTION * total
        if total >= _LEAST_TICKS and pinned_since_boot and slowed > _SLOWED_FRACTION * total:
            cpus = format_cpu_list(machine.cpus(f"{policy}/related_cpus") or ())
            yield Message(
                "cpu{cpus} below its top clock {part:.0%} of the time since boot, by heat or before it was pinned",
                cpus=cpus,
                part=slowed / total,
            )


def _counted(machine: Machine) -> Iterator[str]:
    """x86 counts for each package, and shows the count at each of its CPUs."""
    paths = machine.glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    most = max((machine.integer(path) or 0 for path in paths), default=0)
    if most > 0:
        yield Message(
            "the CPU counted {count:,} time since boot, by heat",
            plural="the CPU counted {count:,} times since boot, by heat",
            count=most,
        )


def _under_voltage(board: Board, machine: Machine) -> Iterator[Finding]:
    """The Raspberry Pi's firmware keeps the alarm until the next boot (drivers/hwmon/raspberrypi-hwmon.c)."""
    for folder in machine.glob("/sys/class/hwmon/hwmon*"):
        if machine.text(f"{folder}/name") == "rpi_volt" and machine.integer(f"{folder}/in0_lcrit_alarm"):
            message = Message("the supply fell under 4.63 V since boot, and the firmware lowers clocks when it does")
            fix = Message(
                "cat {folder}/in0_lcrit_alarm  # 1 again after a new boot: take a stronger supply or a better cable",
                folder=folder,
            )
            yield Finding("under-voltage", "warning", "power", message, fix, look=True)


def _little_cores(board: Board, machine: Machine) -> Iterator[Finding]:
    little = [cpu for cluster in board.clusters if cluster.kind == "little" for cpu in cluster.cpus]
    if little:
        used = format_cpu_list(board.big_cpus)
        message = Message(
            "cpu{little} are little cores and slow the others: cpu{used} will be used",
            little=format_cpu_list(little),
            used=used,
        )
        if set(board.big_cpus) <= set(little):
            big = [cpu for cluster in board.clusters for cpu in cluster.cpus if cpu not in little]
            message = Message(
                "this process may use little cores alone, cpu{used}: cpu{big} are faster",
                used=used,
                big=format_cpu_list(big),
            )
        yield Finding("little-cores", "note", "little cores", message)


RULES: tuple[Rule, ...] = (
    _governors,
    _no_cpufreq,
    _limits,
    _held_units,
    _memory_clock,
    _memory_clock_absent,
    _throttled,
    _under_voltage,
    _little_cores,
)

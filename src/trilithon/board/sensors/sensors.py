"""What a machine says of itself while it works: temperatures, clocks, load, memory by kind, power.

Each reading carries the file that it comes from. What is absent, closed to this user, garbled or beyond what is
possible has no reading; it is never 0. Debugfs' `rknpu/freq` and `volt` are left alone: reading them powers the NPU up.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from trilithon.board.devfreq import devfreq_entries
from trilithon.board.processors import read_clusters
from trilithon.board.sensors.meters import meters
from trilithon.board.sensors.probes import PLAUSIBLE, Channel, Parser, Probe, Reading, number
from trilithon.board.sysfs import THIS_MACHINE, Machine, format_cpu_list

__all__ = ["Frame", "Overtaken", "Sensors", "parse_npu_load", "probes", "readings"]

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
# A board has one to three clocks for its CPUs; a PC has one per CPU, which would be too many lines and too many reads.
_MOST_POLICIES = 8
_MOST_CLOCKS = 64
# CPUs whose temperature no thermal zone shows; elsewhere hwmon repeats the zones.
_CPU_THERMOMETERS = ("coretemp", "k10temp", "zenpower")
# At 4 Hz one second: a file that gives nothing for so long is not asked again.
_FAILURES = 4
# What moves slowly is read with each fourth frame: at 4 Hz once a second.
_SLOW = 4
# What a file without a value, or with nonsense in it, ends in; arithmetic goes wrong with endless digits.
_GARBLED = (OSError, ValueError, ArithmeticError)

_MEMINFO = re.compile(
    rb"^(MemFree|MemAvailable|AnonPages|Buffers|Cached|Shmem|SwapTotal|SwapFree|CmaTotal|CmaFree): +(\d{1,15}) kB$",
    re.MULTILINE,
)
_NPU_CORE = re.compile(rb"Core(\d{1,2}): *(\d{1,3})%")
_NPU_WHOLE = re.compile(rb"load: *(\d{1,3})%", re.IGNORECASE)
_DEVFREQ_LOAD = re.compile(rb"(\d{1,3})@\d+Hz\s*")
_DMA_TOTAL = re.compile(rb"Total \d{1,9} objects, (\d{1,18}) bytes")


class Overtaken(Exception):
    """Another thread reads these sensors now."""


@dataclass(frozen=True, slots=True)
class Frame:
    """All values at one moment (`at_ns` monotonic), in the order of the sensors' channels; None has no reading."""

    at_ns: int
    values: tuple[float | None, ...]


def readings(channels: Sequence[Channel], frame: Frame) -> tuple[Reading, ...]:
    return tuple(
        channel.reading(value) for channel, value in zip(channels, frame.values, strict=True) if value is not None
    )


@dataclass(slots=True)
class _Held:
    """A probe whose files are open. `places` say where in a frame each of its names goes; values from `least` to `most`
    are plausible."""

    probe: Probe
    descriptors: tuple[int, ...]
    places: Mapping[str, int]
    least: float
    most: float
    failures: int = 0


class Sensors:
    """The sensors that this machine has and this user may read, with their files held open.

    `channels` say what they are, `closed` which more there are that this user may not read, `reading` which file is
    being read now, for when it does not answer."""

    def __init__(self, machine: Machine = THIS_MACHINE, *, each_cpu: bool = False):
        self.reading = ""
        self.closed: list[str] = []
        self.channels: tuple[Channel, ...] = ()
        self._live: list[_Held] = []
        self._frames = 0
        self._turn = object()
        for probe in probes(machine, each_cpu=each_cpu):
            self._hold(machine, probe)
        self._turn = object()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for held in self._live:
            _close(held.descriptors)
        self._live = []

    def read(self, *, whole: bool = True) -> Frame:
        """Without `whole` a probe with `every` is left out of most frames. Raises Overtaken when `give_up` was called
        while a file did not answer."""
        turn = self._turn = object()
        values: list[float | None] = [None] * len(self.channels)
        at_ns = time.monotonic_ns()
        gone = []
        for held in self._live:
            if not whole and self._frames % held.probe.every:
                continue
            self.reading = held.probe.paths[0]
            try:
                parsed = _parsed(held, at_ns)
            except _GARBLED:
                parsed = {}
                held.failures += 1
                if held.failures >= _FAILURES:
                    gone.append(held)
            else:
                held.failures = 0
            if self._turn is not turn:
                raise Overtaken
            for name, value in parsed.items():
                place = held.places.get(name)
                if place is not None and held.least <= value <= held.most:
                    values[place] = value
        self.reading = ""
        self._frames += 1
        for held in gone:
            self._live.remove(held)
            _close(held.descriptors)
        return Frame(at_ns, tuple(values))

    def give_up(self) -> str:
        """Go on without the file that is being read, and does not answer; gives its path. Its descriptor stays open:
        closing it would wait as well."""
        path, self._turn = self.reading, object()
        self._live = [held for held in self._live if held.probe.paths[0] != path]
        return path

    def _hold(self, machine: Machine, probe: Probe) -> None:
        self.closed += [path for path in probe.paths if machine.access(path) == "denied"]
        self.reading = probe.paths[0]
        descriptors = tuple(descriptor for path in probe.paths if (descriptor := machine.hold(path)) is not None)
        held = _Held(probe, descriptors, {}, *PLAUSIBLE[probe.quantity])
        names: Sequence[str] = ()
        if len(descriptors) == len(probe.paths):
            try:
                parsed = _parsed(held, time.monotonic_ns())
            except _GARBLED:
                parsed = None  # now without a value: left out, as absent ones are
            names = () if parsed is None else probe.names or tuple(parsed)
        if not names:
            _close(descriptors)
            return
        channels = [Channel(probe.quantity, self._unique(probe, name), probe.source) for name in names]
        held.places = {name: len(self.channels) + place for place, name in enumerate(names)}
        self.channels += tuple(channels)
        self._live.append(held)

    def _unique(self, probe: Probe, name: str) -> str:
        """Two thermal zones of one type, or two monitors of one kind, are told apart by their folder."""
        taken = {channel.name for channel in self.channels if channel.quantity == probe.quantity}
        return name if name not in taken else f"{name} ({probe.paths[0].split('/')[-2]})"


def _parsed(held: _Held, at_ns: int) -> Mapping[str, float]:
    probe = held.probe
    return probe.parse([os.pread(descriptor, probe.most_bytes, 0) for descriptor in held.descriptors], at_ns)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def probes(machine: Machine, *, each_cpu: bool = False) -> Iterator[Probe]:
    """Everything that could be read, meters first: a frame carries the time of its beginning, and only power and
    energy are compared with the clock. With `each_cpu` the load of each CPU by itself, beside that of its group."""
    yield from meters(machine)
    yield from _temperatures(machine)
    yield from _clocks_and_loads(machine, each_cpu)
    yield from _memory(machine)


def _temperatures(machine: Machine) -> Iterator[Probe]:
    """With every fourth frame: a chip warms up over seconds, and a board has seven zones."""
    for zone in machine.glob("/sys/class/thermal/thermal_zone*"):
        name = machine.text(f"{zone}/type") or zone.rpartition("/")[2]
        yield number("temperature", name, f"{zone}/temp", 1e-3, every=_SLOW)
    for folder in machine.glob("/sys/class/hwmon/hwmon*"):
        chip = machine.text(f"{folder}/name")
        if chip in _CPU_THERMOMETERS:
            yield number("temperature", chip, f"{folder}/temp1_input", 1e-3, every=_SLOW)


def _clocks_and_loads(machine: Machine, each_cpu: bool) -> Iterator[Probe]:
    groups = _cpu_groups(machine)
    for name, (_, paths) in groups.items():
        if paths:
            yield Probe("clock", paths, _highest(name), (name,))
    for entry in devfreq_entries(machine):
        yield number("clock", entry.title, f"{entry.folder}/cur_freq", 1.0)
        if entry.unit != "npu":  # whose devfreq load is a stub of its driver
            yield Probe("load", (f"{entry.folder}/load",), _devfreq_load(entry.title), (entry.title,))
    for path in ("/sys/kernel/debug/rknpu/load", "/proc/rknpu/load"):
        if _worth_asking(machine, path):
            yield Probe("load", (path,), lambda data, _: parse_npu_load(data[0]), most_bytes=4096)
            break
    cpus = {name: members for name, (members, _) in groups.items() if members}
    if each_cpu:
        cpus |= {f"cpu{cpu}": (cpu,) for members in tuple(cpus.values()) for cpu in members}
    yield Probe("load", ("/proc/stat",), _CpuUse(cpus), tuple(cpus), _SLOW, most_bytes=1 << 16)


def _worth_asking(machine: Machine, path: str) -> bool:
    """Debugfs is closed to all but root, and so does not say what is in it: on a board, what may be there is named."""
    access = machine.access(path)
    return access == "readable" or (access == "denied" and machine.exists("/sys/module/rknpu"))


def _cpu_groups(machine: Machine) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name to CPUs and the files of their clocks: those that share a clock, or on a PC those of one kind."""
    policies = [(path, machine.cpus(f"{path}/related_cpus") or ()) for path in machine.glob(f"{_CPUFREQ}/policy*")]
    if 0 < len(policies) <= _MOST_POLICIES and all(cpus for _, cpus in policies):
        return {f"cpu{format_cpu_list(cpus)}": (cpus, (f"{path}/scaling_cur_freq",)) for path, cpus in policies}
    groups = {}
    for cluster in read_clusters(machine):
        paths = [f"{path}/scaling_cur_freq" for path, cpus in policies if set(cpus) & set(cluster.cpus)]
        groups[f"cpu{format_cpu_list(cluster.cpus)}"] = (cluster.cpus, tuple(paths[:_MOST_CLOCKS]))
    return groups


def _highest(name: str) -> Parser:
    def parse(data: Sequence[bytes], _: int) -> dict[str, float]:
        return {name: max(map(int, data)) * 1e3}

    return parse


def _devfreq_load(name: str) -> Parser:
    def parse(data: Sequence[bytes], _: int) -> dict[str, float]:
        match = _DEVFREQ_LOAD.fullmatch(data[0])
        if match is None:
            raise ValueError("not a devfreq load")
        return {name: int(match[1]) / 100}

    return parse


def parse_npu_load(data: bytes) -> dict[str, float]:
    """The vendor driver's "NPU load:  Core0: 12%, Core1:  0%," or, with one core, "NPU load: 12%".

    Raises ValueError for anything else."""
    cores = {f"NPU core {int(core)}": int(percent) / 100 for core, percent in _NPU_CORE.findall(data)}
    whole = _NPU_WHOLE.search(data)
    if not cores and whole is None:
        raise ValueError("not a load of the NPU")
    return cores or {"NPU": int(whole[1]) / 100 if whole else 0.0}


class _CpuUse:
    """How busy the CPUs of each group were since the read before, 1 when all of them had work all the time."""

    def __init__(self, groups: Mapping[str, Sequence[int]]):
        self._groups = groups
        self._before: dict[int, tuple[int, int]] = {}

    def __call__(self, data: Sequence[bytes], _: int) -> dict[str, float]:
        now = _cpu_ticks(data[0])
        before, self._before = self._before, now
        use = {}
        for name, cpus in self._groups.items():
            there = [cpu for cpu in cpus if cpu in now and cpu in before]
            total = sum(now[cpu][0] - before[cpu][0] for cpu in there)
            if total > 0:
                use[name] = sum(now[cpu][1] - before[cpu][1] for cpu in there) / total
        return use


def _cpu_ticks(stat: bytes) -> dict[int, tuple[int, int]]:
    """Per CPU all ticks and those at work, of user, nice, system, idle, iowait, irq, softirq (proc(5)); what comes
    after is another machine's work, or counted within user already. Raises ValueError."""
    ticks = {}
    for line in stat[stat.find(b"\ncpu") + 1 : stat.find(b"\nintr")].splitlines():
        name, user, nice, system, idle, waiting, irq, softirq = line.split(None, 8)[:8]
        busy = int(user) + int(nice) + int(system) + int(irq) + int(softirq)
        ticks[int(name[3:])] = (busy + int(idle) + int(waiting), busy)
    return ticks


def _memory(machine: Machine) -> Iterator[Probe]:
    """With every fourth frame: memory moves slowly, and these files are the dearest."""
    yield Probe("memory", ("/proc/meminfo",), lambda data, _: _memory_kinds(data[0]), every=_SLOW, most_bytes=8192)
    path = "/sys/kernel/debug/dma_buf/bufinfo"
    if _worth_asking(machine, path):
        yield Probe("memory", (path,), lambda data, _: _dma_buffers(data[0]), every=_SLOW, most_bytes=1 << 20)


def _memory_kinds(data: bytes) -> dict[str, float]:
    """Bytes by kind. The page cache is what files hold and can be dropped: shared memory is counted apart."""
    meminfo = {name.decode(): int(kibibytes) * 1024 for name, kibibytes in _MEMINFO.findall(data)}
    if not meminfo:
        raise ValueError("not a meminfo")
    kinds = {
        "available": meminfo.get("MemAvailable"),
        "free": meminfo.get("MemFree"),
        "anonymous": meminfo.get("AnonPages"),
        "page cache": _sum(meminfo.get("Buffers"), meminfo.get("Cached"), minus=meminfo.get("Shmem")),
        "shared": meminfo.get("Shmem"),
        "swap": _sum(meminfo.get("SwapTotal") or None, minus=meminfo.get("SwapFree")),
        "CMA": _sum(meminfo.get("CmaTotal") or None, minus=meminfo.get("CmaFree")),
    }
    return {name: float(count) for name, count in kinds.items() if count is not None}


def _sum(*counts: int | None, minus: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return None if minus is None or len(known) < len(counts) else sum(known) - minus


def _dma_buffers(data: bytes) -> dict[str, float]:
    match = _DMA_TOTAL.match(data, data.rfind(b"Total "))
    if match is None:
        raise ValueError("no total of DMA buffers")
    return {"DMA buffers": float(match[1])}

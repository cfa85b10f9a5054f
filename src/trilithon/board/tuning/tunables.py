"""What can be tuned on a board, one small class each: is it there, how does it stand, what would have to be written.

Clocks are taken to the top of the kernel's own table; nothing here knows a number of a chip."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from trilithon.board.chips import chip_of_device_tree
from trilithon.board.cooling import is_cooled
from trilithon.board.devfreq import devfreq_entries
from trilithon.board.sysfs import Machine
from trilithon.board.tuning.changes import Change

__all__ = ["CpuClock", "DevfreqClock", "IdleStates", "NpuDebugClock", "Tunable", "tunables"]

_CPUS = "/sys/devices/system/cpu"
_NPU_FILES = ("/sys/kernel/debug/rknpu/freq", "/proc/rknpu/freq")
# A clock is at its top when it is no further from it than drivers round.
_TOP_FRACTION = 0.99
# x86 drivers report what a core did lately, not what it was told: an idle one reads low under any governor.
_MEASURING_DRIVERS = ("intel", "amd", "acpi", "pcc")


class Tunable(Protocol):
    """`subject` is what a user calls it; several tunables (three CPU policies) may share one."""

    @property
    def subject(self) -> str: ...

    def available(self, machine: Machine) -> bool: ...

    def read(self, machine: Machine) -> str:
        """How it stands now, in words."""
        ...

    def changes(self, machine: Machine) -> list[Change]:
        """What to write, in this order, so that it stays at its fastest; nothing when it does so already."""
        ...

    def steady(self, machine: Machine) -> bool:
        """Whether it stays where it was put, as far as nothing gets hot."""
        ...

    def short_of(self, machine: Machine) -> str:
        """How far it stays below its top although all was written; empty when it is there."""
        ...


@dataclass(frozen=True, slots=True)
class _Governed:
    """A clock with a governor: cpufreq and devfreq differ in the names of their files alone."""

    subject: str
    folder: str

    governor: ClassVar[str]
    governors: ClassVar[str]
    table: ClassVar[str]
    ceiling: ClassVar[str]
    floor: ClassVar[str]
    speed: ClassVar[str]
    current: ClassVar[str]
    hertz: ClassVar[int]

    def available(self, machine: Machine) -> bool:
        return machine.text(f"{self.folder}/{self.governor}") is not None

    def read(self, machine: Machine) -> str:
        current = machine.integer(f"{self.folder}/{self.current}")
        governor = machine.text(f"{self.folder}/{self.governor}") or "unknown"
        return f"{governor} {_megahertz(current * self.hertz)} MHz" if current else governor

    def changes(self, machine: Machine) -> list[Change]:
        return [*self._raised_ceiling(machine), *self._steadied(machine)]

    def steady(self, machine: Machine) -> bool:
        if machine.text(f"{self.folder}/{self.governor}") in ("performance", "userspace"):
            return True
        top = self.top(machine)
        return top is not None and machine.integer(f"{self.folder}/{self.floor}") == top

    def short_of(self, machine: Machine) -> str:
        top, current = self.top(machine), machine.integer(f"{self.folder}/{self.current}")
        if not top or not current or current >= _TOP_FRACTION * top:
            return ""
        return f"at {_megahertz(current * self.hertz)} of {_megahertz(top * self.hertz)} MHz"

    def top(self, machine: Machine) -> int | None:
        return max(machine.integers(f"{self.folder}/{self.table}") or (), default=None)

    def forgotten(self, machine: Machine, governor: str) -> Iterator[str]:
        """Files whose values the kernel forgets when `governor` goes."""
        if governor == "userspace":
            yield f"{self.folder}/{self.speed}"

    def _raised_ceiling(self, machine: Machine) -> Iterator[Change]:
        """While the chip is cooled the file shows that limit: put back later, it would stay for good."""
        path, top = f"{self.folder}/{self.ceiling}", self.top(machine)
        ceiling = machine.integer(path)
        if top and ceiling and ceiling < top and not is_cooled(machine):
            yield Change(path, machine.raw(path), str(top), effective=True)

    def _steadied(self, machine: Machine) -> Iterator[Change]:
        """By the governor performance; where a speed was set by hand, by that: another governor would forget it."""
        path, top = f"{self.folder}/{self.governor}", self.top(machine)
        governor = machine.text(path) or ""
        choices = (machine.text(f"{self.folder}/{self.governors}") or "performance").split()
        speed = f"{self.folder}/{self.speed}"
        by_hand = machine.integer(speed) if governor == "userspace" else None
        if governor == "performance":
            return
        if governor == "userspace" and by_hand is None and machine.text(speed) == "undefined":
            # Nobody has set a speed, and the clock stays where it was: devfreq takes no "undefined" back.
            by_hand = machine.integer(f"{self.folder}/{self.current}")
        if by_hand is not None and top:
            if by_hand != top and not is_cooled(machine):
                yield Change(speed, f"{by_hand}\n", str(top), effective=True)
        elif "performance" in choices:
            yield from self._governed_by("performance", machine)
        elif "userspace" in choices and top:
            yield from self._governed_by("userspace", machine)
            yield Change(speed, None, str(top))
        elif top and machine.integer(f"{self.folder}/{self.floor}") not in (None, top) and not is_cooled(machine):
            floor = f"{self.folder}/{self.floor}"
            yield Change(floor, machine.raw(floor), str(top), effective=True)

    def _governed_by(self, governor: str, machine: Machine) -> Iterator[Change]:
        path = f"{self.folder}/{self.governor}"
        for kept in self.forgotten(machine, machine.text(path) or ""):
            value = machine.raw(kept)
            if value is not None:
                yield Change(kept, value, None)
        yield Change(path, machine.raw(path), governor)


@dataclass(frozen=True, slots=True)
class CpuClock(_Governed):
    """One cpufreq policy."""

    governor = "scaling_governor"
    governors = "scaling_available_governors"
    table = "scaling_available_frequencies"
    ceiling = "scaling_max_freq"
    floor = "scaling_min_freq"
    speed = "scaling_setspeed"
    current = "scaling_cur_freq"
    hertz = 1000

    def top(self, machine: Machine) -> int | None:
        table = machine.integers(f"{self.folder}/{self.table}") or ()
        return max(table, default=None) or machine.integer(f"{self.folder}/cpuinfo_max_freq")

    def short_of(self, machine: Machine) -> str:
        if (machine.text(f"{self.folder}/scaling_driver") or "").startswith(_MEASURING_DRIVERS):
            return ""
        text = _Governed.short_of(self, machine)
        return f"{self.folder.rpartition('/')[2]} is {text}" if text else ""

    def forgotten(self, machine: Machine, governor: str) -> Iterator[str]:
        """A governor's own settings, of this policy or of all; boards are tuned by them (Armbian lowers ondemand's
        up_threshold). And x86's preference, which the governor performance overrules."""
        yield from _Governed.forgotten(self, machine, governor)
        if governor.isidentifier():
            yield from machine.glob(f"{self.folder}/{governor}/*")
            yield from machine.glob(f"{_CPUS}/cpufreq/{governor}/*")
        yield f"{self.folder}/energy_performance_preference"


@dataclass(frozen=True, slots=True)
class DevfreqClock(_Governed):
    """The clock of memory, GPU or NPU."""

    governor = "governor"
    governors = "available_governors"
    table = "available_frequencies"
    ceiling = "max_freq"
    floor = "min_freq"
    speed = "userspace/set_freq"
    current = "cur_freq"
    hertz = 1


@dataclass(frozen=True, slots=True)
class NpuDebugClock:
    """The NPU's clock where the driver takes it through debugfs. `table` is the devfreq file with its steps."""

    path: str
    table: str

    subject: ClassVar[str] = "NPU clock"

    def available(self, machine: Machine) -> bool:
        return machine.exists(self.path) and self._top(machine) is not None

    def read(self, machine: Machine) -> str:
        current = machine.integer(self.path)
        return f"{_megahertz(current)} MHz" if current else "unknown"

    def changes(self, machine: Machine) -> list[Change]:
        top = self._top(machine)
        if top is None or machine.integer(self.path) == top:
            return []
        return [Change(self.path, machine.raw(self.path), str(top), effective=True)]

    def steady(self, machine: Machine) -> bool:
        return True

    def short_of(self, machine: Machine) -> str:
        current, top = machine.integer(self.path), self._top(machine)
        if not current or not top or current >= _TOP_FRACTION * top:
            return ""
        return f"at {_megahertz(current)} of {_megahertz(top)} MHz"

    def _top(self, machine: Machine) -> int | None:
        return max(machine.integers(self.table) or (), default=None)


@dataclass(frozen=True, slots=True)
class IdleStates:
    """One CPU's deep idle states: waking up from them takes time, as the vendor's scripts take into account."""

    folder: str

    subject: ClassVar[str] = "idle states"

    def available(self, machine: Machine) -> bool:
        return bool(self._deep(machine))

    def read(self, machine: Machine) -> str:
        off = sum(machine.integer(path) == 1 for path in self._deep(machine))
        return f"{off} of {len(self._deep(machine))} off"

    def changes(self, machine: Machine) -> list[Change]:
        return [Change(path, machine.raw(path), "1") for path in self._deep(machine) if machine.integer(path) == 0]

    def steady(self, machine: Machine) -> bool:
        return all(machine.integer(path) == 1 for path in self._deep(machine))

    def short_of(self, machine: Machine) -> str:
        return ""

    def _deep(self, machine: Machine) -> list[str]:
        """All but the one that a CPU cannot do without: waiting for an interrupt (on x86 that is the second, after
        polling)."""
        polls = machine.text(f"{self.folder}/state0/name") == "POLL"
        return machine.glob(f"{self.folder}/state[0-9]*/disable")[2 if polls else 1 :]


def tunables(machine: Machine, *, idle_states: bool = False) -> list[Tunable]:
    """The clocks that this machine lets someone set, and its idle states if they are asked for."""
    candidates: list[Tunable] = [
        CpuClock("CPU clocks", folder) for folder in machine.glob(f"{_CPUS}/cpufreq/policy[0-9]*")
    ]
    candidates += _devfreq_clocks(machine)
    if idle_states:
        candidates += [IdleStates(folder) for folder in machine.glob(f"{_CPUS}/cpu[0-9]*/cpuidle")]
    return [candidate for candidate in candidates if candidate.available(machine)]


def _devfreq_clocks(machine: Machine) -> Iterator[Tunable]:
    chip = chip_of_device_tree(machine.strings("/proc/device-tree/compatible") or ())
    for entry in devfreq_entries(machine):
        usable: list[NpuDebugClock] = []
        if entry.unit == "npu" and chip and chip.npu_clock == "debugfs":
            clocks = [NpuDebugClock(path, f"{entry.folder}/available_frequencies") for path in _NPU_FILES]
            usable = [clock for clock in clocks if clock.available(machine)]
        yield usable[0] if usable else DevfreqClock(f"{entry.title} clock", entry.folder)


def _megahertz(hertz: int) -> str:
    return f"{hertz / 1e6:.0f}"

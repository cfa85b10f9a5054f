"""Power and energy where a machine has a meter for them: RAPL, hwmon (INA2xx, INA3221 and others), a battery.

Nothing is estimated: a machine without a meter has no power reading. Most boards have none."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trilithon.board.sensors.probes import Probe, integer, number
from trilithon.board.sysfs import Machine

__all__ = ["EnergyCounter", "meters"]

_MICRO = 1e-6
# A counter that says more was set back, or is garbled. A power supply of a PC ends at about 2 kW.
_MOST_WATTS = 10e3
# The hwmon drivers whose currN_input and inN_input are of one rail (kernel: Documentation/hwmon/ina2xx, ina3221).
_RAIL_MONITORS = re.compile(r"ina\d")


class EnergyCounter:
    """Joules since the first read, by counters in µJ that are added up; each starts anew after its range (µJ), None
    where it never does. Once one was set back all is garbled: what was used in between is unknown."""

    def __init__(self, name: str, ranges: Sequence[int | None]):
        self._name = name
        self._ranges = ranges
        self._before: list[int] = []
        self._before_ns = 0
        self._microjoules = 0
        self._lost = False

    def __call__(self, data: Sequence[bytes], at_ns: int) -> Mapping[str, float]:
        now = [integer(value) for value in data]
        if self._before:
            self._add(now, (at_ns - self._before_ns) / 1e9)
        self._before, self._before_ns = now, at_ns
        return {self._name: self._microjoules * _MICRO}

    def _add(self, now: Sequence[int], seconds: float) -> None:
        steps = [_step(*values) for values in zip(self._before, now, self._ranges, strict=True)]
        known = [step for step in steps if step is not None]
        # A millisecond more, for counters that are updated in steps.
        if self._lost or len(known) < len(steps) or sum(known) * _MICRO > _MOST_WATTS * (seconds + 1e-3):
            self._lost = True
            raise ValueError("an energy counter was set back")
        self._microjoules += sum(known)


def _step(before: int, now: int, most: int | None) -> int | None:
    if now >= before:
        return now - before
    return None if most is None or most < before else now + most - before


def meters(machine: Machine) -> Iterator[Probe]:
    yield from _rapl(machine)
    for folder in machine.glob("/sys/class/hwmon/hwmon*"):
        yield from _hwmon(machine, folder)
    for folder in machine.glob("/sys/class/power_supply/*"):
        yield from _battery(machine, folder)


def _rapl(machine: Machine) -> Iterator[Probe]:
    """The packages added up, and each part beside them. The same counters show a second time as intel-rapl-mmio."""
    zones = {zone: machine.text(f"{zone}/name") or "" for zone in machine.glob("/sys/class/powercap/intel-rapl:*")}
    packages = [zone for zone, name in zones.items() if name.startswith("package")]
    if packages:
        yield _counters(machine, zones[packages[0]] if len(packages) == 1 else "packages", packages)
    for zone, name in zones.items():
        if name and zone not in packages:
            parent = zones.get(zone.rpartition(":")[0], "")
            yield _counters(machine, f"{parent} {name}".strip(), [zone])


def _counters(machine: Machine, name: str, zones: Sequence[str]) -> Probe:
    ranges = [machine.integer(f"{zone}/max_energy_range_uj") for zone in zones]
    return Probe("energy", tuple(f"{zone}/energy_uj" for zone in zones), EnergyCounter(name, ranges), (name,))


def _hwmon(machine: Machine, folder: str) -> Iterator[Probe]:
    chip = machine.text(f"{folder}/name") or Path(folder).name
    metered = set()
    for path in (*machine.glob(f"{folder}/power*_input"), *machine.glob(f"{folder}/power*_average")):
        index = Path(path).name.partition("_")[0].removeprefix("power")
        if index not in metered:
            metered.add(index)
            yield number("power", _label(machine, folder, chip, f"power{index}"), path, _MICRO)
    for path in machine.glob(f"{folder}/energy*_input"):
        name = _label(machine, folder, chip, Path(path).name.removesuffix("_input"))
        yield Probe("energy", (path,), EnergyCounter(name, [None]), (name,))
    if _RAIL_MONITORS.match(chip):
        for path in machine.glob(f"{folder}/curr*_input"):
            index = Path(path).name.removeprefix("curr").removesuffix("_input")
            voltage = f"{folder}/in{index}_input"
            if index not in metered and machine.exists(voltage):
                yield _product(_label(machine, folder, chip, f"in{index}"), path, voltage)


def _label(machine: Machine, folder: str, chip: str, sensor: str) -> str:
    return f"{chip} {machine.text(f'{folder}/{sensor}_label') or sensor}"


def _product(name: str, current: str, voltage: str) -> Probe:
    """hwmon counts mA and mV."""

    def parse(data: Sequence[bytes], _: int) -> dict[str, float]:
        return {name: integer(data[0]) * integer(data[1]) * _MICRO}

    return Probe("power", (current, voltage), parse, (name,))


def _battery(machine: Machine, folder: str) -> Iterator[Probe]:
    """What the machine draws, as long as the battery gives it. On the mains its current is that of charging."""
    if machine.text(f"{folder}/type") != "Battery":
        return
    name = Path(folder).name
    for files, scale in (("power_now",), 1e-6), (("current_now", "voltage_now"), 1e-12):
        if all(machine.exists(f"{folder}/{file}") for file in files):
            yield _discharge(name, (f"{folder}/status", *(f"{folder}/{file}" for file in files)), scale)
            return


def _discharge(name: str, paths: tuple[str, ...], scale: float) -> Probe:
    def parse(data: Sequence[bytes], _: int) -> dict[str, float]:
        product = 1
        for value in data[1:]:
            product *= abs(integer(value))  # some drivers count what flows out as negative
        return {name: product * scale} if data[0].strip() == b"Discharging" else {}

    return Probe("power", paths, parse, (name,))

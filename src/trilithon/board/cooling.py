"""What the kernel slows when something is hot: by how much now, and for how long since boot."""

import re
from dataclasses import dataclass

from trilithon.board.sysfs import Machine

__all__ = ["CoolingDevice", "is_cooled", "read_cooling"]

# Devices that slow something down, and no fans: "thermal-cpufreq-0", "cpufreq-cpu4" and "devfreq-fb000000.gpu" (kernel:
# drivers/thermal/cpufreq_cooling.c, devfreq_cooling.c), "Processor" (ACPI).
_SLOWING = re.compile(r"(thermal-)?(cpufreq|devfreq)-.+|Processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolingDevice:
    """`step` is 0 for one that slows nothing now. `slowed_milliseconds` is the time since boot in which it did, None
    where the kernel keeps none (CONFIG_THERMAL_STATISTICS)."""

    name: str
    step: int
    slowed_milliseconds: int | None


def read_cooling(machine: Machine) -> tuple[CoolingDevice, ...]:
    """Devices of one type are told apart by their folder."""
    cooling_devices: dict[str, CoolingDevice] = {}
    for folder in machine.glob("/sys/class/thermal/cooling_device*"):
        kind, step = machine.text(f"{folder}/type") or "", machine.integer(f"{folder}/cur_state")
        if step is not None and _SLOWING.fullmatch(kind):
            name = f"{kind} ({folder.rpartition('/')[2]})" if kind in cooling_devices else kind
            slowed = machine.parsed(f"{folder}/stats/time_in_state_ms", _slowed_milliseconds)
            cooling_devices[name] = CoolingDevice(name=name, step=max(step, 0), slowed_milliseconds=slowed)
    return tuple(cooling_devices.values())


def is_cooled(machine: Machine) -> bool:
    """Whether the kernel holds clocks down now because something is hot."""
    return any(device.step for device in read_cooling(machine))


def _slowed_milliseconds(text: str) -> int:
    """The time in all states but 0; lines are "state3\t1200". Raises ValueError for anything else, also
    for nothing."""
    rows = [re.fullmatch(r"state(\d{1,4})\s+(\d{1,18})", line.strip(), re.ASCII) for line in text.splitlines()]
    states = {int(row[1]): int(row[2]) for row in rows if row}
    if not states or len(states) != len(rows):
        raise ValueError("time_in_state_ms: a line is not a state and a time")
    return sum(spent for state, spent in states.items() if state > 0)

"""Which parts the kernel holds down now because something is hot."""

import re
from collections.abc import Mapping

from trilithon.board.sysfs import Machine

__all__ = ["cooling_steps"]

# Devices that slow something down, and no fans: "thermal-cpufreq-0", "cpufreq-cpu4" and "devfreq-fb000000.gpu" (kernel:
# drivers/thermal/cpufreq_cooling.c, devfreq_cooling.c), "Processor" (ACPI).
_SLOWING = re.compile(r"(thermal-)?(cpufreq|devfreq)-.+|Processor")


def cooling_steps(machine: Machine) -> Mapping[str, int]:
    """Device to step, 0 for one that does nothing now. Devices of one type are told apart by their folder."""
    found: dict[str, int] = {}
    for folder in machine.glob("/sys/class/thermal/cooling_device*"):
        kind, step = machine.text(f"{folder}/type") or "", machine.integer(f"{folder}/cur_state")
        if step is not None and _SLOWING.fullmatch(kind):
            found[f"{kind} ({folder.rpartition('/')[2]})" if kind in found else kind] = max(step, 0)
    return found

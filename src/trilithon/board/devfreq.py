"""The clocks that the kernel's devfreq keeps: of memory, GPU and NPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trilithon.board.sysfs import Machine

__all__ = ["DevfreqEntry", "DevfreqUnit", "devfreq_entries"]

DevfreqUnit = Literal["npu", "gpu", "memory"]

# The last part of an entry's name, before which the unit's address stands: "fdab0000.npu", "dmc". It is the name of the
# unit's node in the device tree: Rockchip's, Allwinner's ("a020000.dmcfreq"), NXP's and mainline's, and Mali's as
# Amlogic's and MediaTek's kernels call it.
_UNITS: dict[str, DevfreqUnit] = {
    "npu": "npu",
    **dict.fromkeys(("gpu", "mali", "bifrost"), "gpu"),
    **dict.fromkeys(("dmc", "dmcfreq", "memory-controller", "dram-controller"), "memory"),
}


@dataclass(frozen=True, slots=True)
class DevfreqEntry:
    unit: DevfreqUnit
    folder: str

    @property
    def title(self) -> str:
        """What people call the unit: "NPU", "GPU", "memory"."""
        return self.unit if self.unit == "memory" else self.unit.upper()


def devfreq_entries(machine: Machine) -> Iterator[DevfreqEntry]:
    for folder in machine.glob("/sys/class/devfreq/*"):
        unit = _UNITS.get(folder.rpartition("/")[2].rpartition(".")[2])
        if unit is not None:
            yield DevfreqEntry(unit, folder)

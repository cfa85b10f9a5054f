"""What is known of chips, of the platforms that files are converted for, and of CPU designs: one table, chips.toml."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trilithon.tables import table_beside

__all__ = [
    "Chip",
    "Core",
    "Platform",
    "chip_of_device_tree",
    "chips",
    "core_of",
    "described_chip",
    "find_chip",
    "is_unknown_rockchip",
    "platform_of",
    "platforms",
]

_ARM = "0x41"
# A Rockchip chip in the device tree, also as the prefix of a board's name ("rockchip,rk3572-evb1-v10").
_ROCKCHIP = re.compile(r"rockchip,(r[kv]\d{3,4}[a-z0-9]{0,4})(-.*)?")
_ROCKCHIP_NAME = re.compile(r"R[KV]\d{3,4}[A-Z0-9]{0,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """`name` is the vendor's ("RK3588S"); `platform` is empty where no files are converted for it. `rkllm` and
    `rk_llama_cpp` (the fork's RKNPU_DEVICE, or False) are None where nobody says."""

    name: str
    compatible: str
    npu_cores: int
    aliases: tuple[str, ...] = ()
    gpu: str | None = None
    platform: str = ""
    npu_clock: str = "devfreq"
    rkllm: bool | None = None
    rk_llama_cpp: str | bool | None = None

    def names(self) -> tuple[str, ...]:
        """The name and all aliases."""
        return (self.name, *self.aliases)

    def is_compatible(self, entry: str) -> bool:
        """Whether an entry of the device tree's `compatible` names this chip, also as the prefix of a board's name
        ("rockchip,rk3588s-orangepi-5")."""
        vendor = self.compatible.partition(",")[0]
        known = (self.compatible, *(f"{vendor},{alias.lower()}" for alias in self.aliases))
        return any(entry == name or entry.startswith(f"{name}-") for name in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What RKLLM files are converted for. `quantizations` are in order of preference. `vision_cores` is the core mask
    of a vision encoder, empty where the parameter is refused; `vision_domain` is the IOMMU domain of the language
    model beside it."""

    name: str
    quantizations: tuple[str, ...]
    vision_cores: str = ""
    vision_domain: int = 0


@dataclass(frozen=True, slots=True)
class Core:
    """A CPU design; `little` is the slow half of a big.LITTLE pair."""

    name: str
    little: bool = False


@cache
def _table() -> Mapping[str, Any]:
    return table_beside(__file__, "chips.toml")


@cache
def chips() -> Mapping[str, Chip]:
    """By the vendor's name."""
    return {
        name: Chip(name=name, **values | {"aliases": tuple(values.get("aliases", ()))})
        for name, values in _table()["chips"].items()
    }


@cache
def platforms() -> Mapping[str, Platform]:
    """By name, in the table's order."""
    return {
        name: Platform(name=name, **values | {"quantizations": tuple(values["quantizations"])})
        for name, values in _table()["platforms"].items()
    }


@cache
def _by_name() -> Mapping[str, Chip]:
    return {name.lower(): chip for chip in chips().values() for name in chip.names()}


def find_chip(name: str) -> Chip | None:
    """The chip of a name as people write it, in any case; None for one that is not in the table."""
    return _by_name().get(name.lower())


def chip_of_device_tree(compatible: Iterable[str]) -> Chip | None:
    """The chip that the device tree's `compatible` names. Its entries go from the special to the general: an RK3588S
    also calls itself an RK3588, and an RK3582 an RK3588S."""
    for entry in compatible:
        for chip in chips().values():
            if chip.is_compatible(entry):
                return chip
    return None


def described_chip(compatible: Sequence[str]) -> str:
    """The name of a chip that is not in the table: "RK3572" for Rockchip's, else the last entry of the device tree's
    `compatible` that is its maker's. Kernels of Allwinner end with an entry of Arm's ("arm,sun60iw2p1")."""
    rockchip = [match[1].upper() for entry in compatible if (match := _ROCKCHIP.fullmatch(entry))]
    makers = [entry for entry in compatible if not entry.startswith("arm,")] or list(compatible)
    return rockchip[-1] if rockchip else makers[-1]


def is_unknown_rockchip(name: str) -> bool:
    """Whether `name` is a Rockchip chip that is not in the table: nothing is known of its NPU."""
    return bool(_ROCKCHIP_NAME.fullmatch(name)) and find_chip(name) is None


def platform_of(chip_name: str) -> str:
    """The platform that files for a chip are converted for; empty for an unknown chip."""
    chip = find_chip(chip_name)
    return chip.platform if chip else ""


def target_names() -> list[str]:
    """The chips that files are converted for, as people write them."""
    return [name.lower() for name, chip in chips().items() if chip.platform]


def core_of(implementer: str, part: str) -> Core:
    """The CPU design of "CPU implementer" and "CPU part" in /proc/cpuinfo, as the kernel prints them ("0x41")."""
    values = _table()["cores"].get(implementer, {}).get(part)
    if values:
        return Core(**values)
    readable = re.sub(r"[^0-9a-fx]", "", f"{part}"[:8])
    return Core(f"Arm part {readable}" if implementer == _ARM else f"CPU part {implementer[:8]}/{readable}")

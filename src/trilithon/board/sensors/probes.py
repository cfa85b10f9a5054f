"""One or several files of the kernel, and the values that their text gives; what cannot be true is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["PLAUSIBLE", "UNITS", "Channel", "Parser", "Probe", "Quantity", "Reading", "integer", "number"]

Quantity = Literal["temperature", "clock", "load", "memory", "power", "energy"]

UNITS: Mapping[Quantity, str] = {
    "temperature": "celsius",
    "clock": "hertz",
    "load": "fraction",
    "memory": "bytes",
    "power": "watts",
    "energy": "joules",
}

PLAUSIBLE: Mapping[Quantity, tuple[float, float]] = {
    "temperature": (0.001, 149.999),
    "clock": (1.0, 20e9),
    "load": (0.0, 1.0),
    "memory": (0.0, 2.0**50),
    "power": (0.0, 10e3),
    "energy": (0.0, 2.0**50),
}
"""The least and the most that is believed; a value outside counts as absent. Thermal zones say -40 °C, 0 °C or far over
150 °C when their sensor is off; no chip works there. A clock of 0 is a unit that is off, which its load says too."""

_MOST_DIGITS = 24  # of 64 bits, with a sign and white space around them

Parser = Callable[[Sequence[bytes], int], Mapping[str, float]]
"""From the files' bytes and the monotonic time (ns) to values by name, in the quantity's unit. A name without a value
now is left out. Raises ValueError for what is garbled."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value with its unit and the file (or files) that it was read from."""

    quantity: Quantity
    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Channel:
    """What a value that is read again and again is: quantity, name, and the file (or files) that it comes from."""

    quantity: Quantity
    name: str
    source: str

    @property
    def unit(self) -> str:
        return UNITS[self.quantity]

    def reading(self, value: float) -> Reading:
        return Reading(self.quantity, self.name, value, self.unit, self.source)


@dataclass(frozen=True, slots=True)
class Probe:
    """Files that are read together. `names` are the values that `parse` will give; empty where only its first result
    tells. `every` is 4 for what is read with each fourth frame only. At most `most_bytes` of a file are looked at."""

    quantity: Quantity
    paths: tuple[str, ...]
    parse: Parser
    names: tuple[str, ...] = ()
    every: int = 1
    most_bytes: int = 64

    @property
    def source(self) -> str:
        return ", ".join(self.paths)


def integer(data: bytes) -> int:
    """Raises ValueError, also for a number that no counter of the kernel can hold."""
    if len(data) > _MOST_DIGITS:
        raise ValueError("more than 64 bits")
    return int(data)


def number(quantity: Quantity, name: str, path: str, scale: float, *, every: int = 1) -> Probe:
    """A file that holds one whole number; the value is `scale` times that."""

    def parse(data: Sequence[bytes], _: int) -> dict[str, float]:
        return {name: integer(data[0]) * scale}

    return Probe(quantity, (path,), parse, (name,), every)

"""Energy that an answer took, where the machine has a meter of its own. Most boards have none, and then nothing is read
and nothing told."""

import asyncio
import time
from types import TracebackType
from typing import Self

from trilithon.bench.recording import sensor_log
from trilithon.board.sensors.meters import meters
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.measure.energy import energy_by_counter, energy_by_power, main_meter
from trilithon.measure.records import SensorLog

__all__ = ["EnergyMeter", "joules_between"]

# As for the energy of a measured run: at 4 Hz a second.
_LEAST_READINGS = 4


class EnergyMeter:
    """An async context manager around one answer. `joules_since`, once it is over, is what the whole machine took from
    a moment to the end, whoever else was at work; None where that is not known."""

    def __init__(self, machine: Machine = THIS_MACHINE):
        self._machine = machine
        self._sampler: Sampler | None = None
        self._log: SensorLog | None = None
        self._ended_ns = 0

    async def __aenter__(self) -> Self:
        self._sampler = await asyncio.to_thread(self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._ended_ns = time.monotonic_ns()
        if self._sampler is not None:
            await asyncio.shield(asyncio.to_thread(self._end, self._sampler))

    def joules_since(self, start_ns: int) -> float | None:
        return None if self._log is None else joules_between(self._log, start_ns, self._ended_ns)

    def _begin(self) -> Sampler | None:
        if next(meters(self._machine), None) is None:
            return None
        sampler = Sampler(self._machine)
        sampler.start()
        return sampler

    def _end(self, sampler: Sampler) -> None:
        with sampler:
            self._log = sensor_log(sampler.stop())


def joules_between(log: SensorLog, start_ns: int, end_ns: int) -> float | None:
    """By the meter that told the most; None where there are too few readings (see `trilithon.measure.energy`)."""
    meter = main_meter(log)
    if meter is None:
        return None
    told = zip(log.at_ns, meter.values, strict=True)
    points = [(at_ns, value) for at_ns, value in told if value is not None]
    if sum(start_ns <= at_ns <= end_ns for at_ns, _ in points) < _LEAST_READINGS:
        return None
    by = energy_by_counter if meter.quantity == "energy" else energy_by_power
    return by(points, start_ns, end_ns)

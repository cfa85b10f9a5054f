"""Sensors beside a placement's figures: the hottest, the lowest clocks, energy per token."""

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trilithon.language import Message, listed
from trilithon.measure.energy import Energy, energy_of, main_meter
from trilithon.measure.records import Campaign, Run, Sample, SensorLog, SensorValues, Test
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.units import format_number

__all__ = ["Conditions", "condition_lines", "conditions_of"]

# An idle CPU is clocked down on purpose: its clock counts only while its cluster was used for half the time or more.
_BUSY_FRACTION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Of one placement in one test, while its finished runs were measured. `hottest` names the zone of `celsius_max`;
    `clocks_min_hz` the lowest clock of each unit; energies are medians over runs, by the meter `meter`, None where
    there is none or its readings do not cover a phase."""

    celsius_max: float | None = None
    hottest: str = ""
    clocks_min_hz: Mapping[str, float] = field(default_factory=dict)
    joules_per_prompt_token: float | None = None
    joules_per_generated_token: float | None = None
    meter: str = ""


def conditions_of(campaign: Campaign, placement: str, test: Test) -> Conditions | None:
    """None where no run of it has a sensor log."""
    runs = [(run, run.sensor_log) for run in campaign.runs if run.placement == placement and run.outcome == "finished"]
    logged = [(run, log) for run, log in runs if log is not None]
    if not logged:
        return None
    temperatures: list[tuple[float, str]] = []
    clocks: dict[str, float] = {}
    for run, log in logged:
        for frames in _frames(run, log, test):
            temperatures += _highest(log, frames)
            for name, hertz in _lowest_clocks(log, frames):
                clocks[name] = min(clocks.get(name, hertz), hertz)
    celsius_max, hottest = max(temperatures, key=lambda reading: reading[0], default=(None, ""))
    energies, meter = _energies(logged, test)
    return Conditions(
        celsius_max=celsius_max,
        hottest=hottest,
        clocks_min_hz=clocks,
        joules_per_prompt_token=_median(energy.joules_per_prompt_token for energy in energies),
        joules_per_generated_token=_median(energy.joules_per_generated_token for energy in energies),
        meter=meter,
    )


def _samples(run: Run, test: Test) -> Iterator[Sample]:
    return (sample for sample in run.samples if sample.test == test)


def _frames(run: Run, log: SensorLog, test: Test) -> Iterator[range]:
    """The frames within each sample of the test, or for a shorter one the next that followed."""
    for sample in _samples(run, test):
        first, end = bisect_left(log.at_ns, sample.started_ns), bisect_right(log.at_ns, sample.finished_ns)
        yield range(first, min(max(end, first + 1), len(log.at_ns)))


def _highest(log: SensorLog, frames: range) -> Iterator[tuple[float, str]]:
    for sensor in _of(log, "temperature"):
        known = [value for value in sensor.values[frames.start : frames.stop] if value is not None]
        if known:
            yield max(known), sensor.name


def _lowest_clocks(log: SensorLog, frames: range) -> Iterator[tuple[str, float]]:
    used = {sensor.name: sensor for sensor in _of(log, "load") if sensor.source == "/proc/stat"}
    for sensor in _of(log, "clock"):
        load = _until_known(used[sensor.name].values) if sensor.name in used else None
        for frame in frames:
            value = sensor.values[frame]
            if value is not None and (load is None or (load[frame] or 0.0) >= _BUSY_FRACTION):
                yield sensor.name, value


def _until_known(loads: Sequence[float | None]) -> list[float | None]:
    """A load tells of all the time since the one before, and is not read with every frame."""
    filled, known = [], None
    for load in reversed(loads):
        known = known if load is None else load
        filled.append(known)
    return filled[::-1]


def _of(log: SensorLog, quantity: str) -> Iterator[SensorValues]:
    """Those with a value for each frame: an import may hold anything."""
    frames = len(log.at_ns)
    return (sensor for sensor in log.sensors if sensor.quantity == quantity and len(sensor.values) == frames)


def _energies(logged: Sequence[tuple[Run, SensorLog]], test: Test) -> tuple[list[Energy], str]:
    """One per sample, all by one meter: the widest of the first run that has one."""
    energies, name = [], ""
    for run, log in logged:
        meter = main_meter(log) if not name else _meter(log, name)
        if meter is not None:
            name = meter.name
            energies += [energy_of(sample, log, meter) for sample in _samples(run, test)]
    return energies, name


def _meter(log: SensorLog, name: str) -> SensorValues | None:
    return next(
        (sensor for quantity in ("power", "energy") for sensor in _of(log, quantity) if sensor.name == name), None
    )


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def condition_lines(told: Sequence[tuple[str, Test, Conditions]], phrases: Phrases = ENGLISH) -> list[str]:
    """One line per placement over its tests: "A: up to 71.2 °C (soc-thermal); clocks down to cpu4-5 1608 MHz; …"."""
    lines = []
    for placement in dict.fromkeys(name for name, _, _ in told):
        own = [(test, conditions) for name, test, conditions in told if name == placement]
        parts = [*_temperature(own), *_clocks(own), *_energy(own)]
        if parts:
            lines.append(f"{placement}: {'; '.join(map(phrases.text, parts))}")
    return lines


_Own = Sequence[tuple[Test, Conditions]]


def _temperature(own: _Own) -> Iterator[Message]:
    hot = [(reading.celsius_max, reading.hottest) for _, reading in own if reading.celsius_max is not None]
    if hot:
        celsius, sensor = max(hot)
        yield Message("up to {celsius:.1f} °C ({sensor})", celsius=celsius, sensor=sensor)


def _clocks(own: _Own) -> Iterator[Message]:
    lowest: dict[str, float] = {}
    for _, reading in own:
        for name, hertz in reading.clocks_min_hz.items():
            lowest[name] = min(lowest.get(name, hertz), hertz)
    if lowest:
        clocks = (
            Message("{name} {megahertz:.0f} MHz", name=name, megahertz=hertz / 1e6) for name, hertz in lowest.items()
        )
        yield Message("clocks down to {clocks}", clocks=listed(clocks))


def _energy(own: _Own) -> Iterator[Message]:
    for test, reading in own:
        for joules, kind in (
            (reading.joules_per_prompt_token, Message("prompt token")),
            (reading.joules_per_generated_token, Message("generated token")),
        ):
            if joules is not None:
                yield Message(
                    "{test} {joules} J per {kind} ({meter})",
                    test=test.name,
                    joules=format_number(joules),
                    kind=kind,
                    meter=reading.meter,
                )

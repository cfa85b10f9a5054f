"""Energy per token from the readings of a meter, for prefill and decode separately. Never estimated: None where the
readings do not cover a phase.

An interval is covered when there is a reading at or before its start, one at or after its end, and at most one second
between neighbours. A phase must contain at least four readings, so that the error at its two ends is small. Of several
meters, the one with the most power counts; they are never added, because one rail may feed another."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum

from trilithon.measure.records import Sample, SensorLog, SensorValues

__all__ = ["Energy", "energy_by_counter", "energy_by_power", "energy_of", "main_meter", "phases"]

_MAX_GAP_NS = 10**9
# One second at 4 Hz. At the edge of a phase the power changes somewhere between two readings, and linear interpolation
# is wrong by up to half a step: a quarter of the change for a phase of one second, 2.5% for one of ten.
_MIN_READINGS = 4

Points = Sequence[tuple[int, float]]
"""(time, value) pairs in any order; times are monotonic, in ns."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules per evaluated prompt token, and per generated token; None where the readings do not cover the phase."""

    joules_per_prompt_token: float | None
    joules_per_generated_token: float | None


def energy_by_power(points: Points, start_ns: int, end_ns: int) -> float | None:
    """Joules from watts, by the trapezoidal rule. None where the interval is not covered."""
    inner = _covering(points, start_ns, end_ns)
    if inner is None:
        return None
    joules = 0.0
    for (before_ns, before), (after_ns, after) in pairwise(inner):
        from_ns, to_ns = max(before_ns, start_ns), min(after_ns, end_ns)
        if from_ns < to_ns:
            slope = (after - before) / (after_ns - before_ns)
            middle = before + slope * ((from_ns - before_ns) + (to_ns - before_ns)) / 2
            joules += middle * (to_ns - from_ns) / 1e9
    return joules


def energy_by_counter(points: Points, start_ns: int, end_ns: int) -> float | None:
    """Joules from a counter in joules, with linear interpolation. None where the interval is not covered."""
    inner = _covering(points, start_ns, end_ns)
    return None if inner is None else _at(inner, end_ns) - _at(inner, start_ns)


def _covering(points: Points, start_ns: int, end_ns: int) -> Points | None:
    """From the last reading at or before the start to the first at or after the end; None where not covered."""
    ordered = sorted(points)
    moments = [at_ns for at_ns, _ in ordered]
    first, last = bisect_right(moments, start_ns) - 1, bisect_left(moments, end_ns)
    if end_ns < start_ns or first < 0 or last == len(ordered):
        return None
    inner = ordered[first : max(first, last) + 1]
    if any(after - before > _MAX_GAP_NS for (before, _), (after, _) in pairwise(inner)):
        return None
    return inner


def _at(points: Points, at_ns: int) -> float:
    """The value at a time, by linear interpolation between points that cover it."""
    for (before_ns, before), (after_ns, after) in pairwise(points):
        if at_ns <= after_ns:
            return before + (after - before) * ((at_ns - before_ns) / (after_ns - before_ns))
    return points[0][1]


def phases(sample: Sample) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Prefill and decode as (start, end) in monotonic ns; None where the sample has no such phase. Their durations are
    from the engine's clock. Decode starts when the first piece arrived; without a stream, it ends with the request."""
    arrivals = [*sample.thinking_at_ns, *sample.answer_at_ns]
    if "first_piece_at_ns" in sample.marks:
        arrivals.append(sample.marks["first_piece_at_ns"])
    decode_start_ns = min(arrivals) if arrivals else sample.finished_ns - (sample.decode_ns or 0)
    prefill = decode = None
    if sample.prompt_ns:
        prefill = (max(decode_start_ns - sample.prompt_ns, sample.started_ns), decode_start_ns)
    if sample.decode_ns:
        decode = (decode_start_ns, min(decode_start_ns + sample.decode_ns, sample.finished_ns))
    return prefill, decode


def main_meter(log: SensorLog) -> SensorValues | None:
    """The meter with the highest average power over the log; None where there is no meter."""
    meters = [
        (watts, sensor) for sensor in log.sensors if (watts := _mean_watts(_points(log, sensor), sensor)) is not None
    ]
    return max(meters, key=lambda meter: meter[0])[1] if meters else None


def _mean_watts(points: Points, meter: SensorValues) -> float | None:
    if len(points) < 2:
        return None
    if meter.quantity == "power":
        return fsum(value / len(points) for _, value in points)  # the sum of imported values may overflow
    (first_ns, first), (last_ns, last) = points[0], points[-1]
    return (last - first) / ((last_ns - first_ns) / 1e9) if last_ns > first_ns else None


def energy_of(sample: Sample, log: SensorLog, meter: SensorValues) -> Energy:
    """`meter` is a power or energy sensor of the log."""
    points = _points(log, meter)
    prefill, decode = phases(sample)
    return Energy(
        _per_token(meter, points, prefill, sample.prompt_evaluated),
        _per_token(meter, points, decode, sample.decode_steps),
    )


def _points(log: SensorLog, sensor: SensorValues) -> list[tuple[int, float]]:
    """Empty for a sensor that is not a meter."""
    if sensor.quantity not in ("power", "energy"):
        return []
    return [(at_ns, value) for at_ns, value in zip(log.at_ns, sensor.values, strict=False) if value is not None]


def _joules(meter: SensorValues, points: Points, start_ns: int, end_ns: int) -> float | None:
    by = energy_by_counter if meter.quantity == "energy" else energy_by_power
    return by(points, start_ns, end_ns)


def _per_token(meter: SensorValues, points: Points, phase: tuple[int, int] | None, tokens: int | None) -> float | None:
    if phase is None or not tokens:
        return None
    if sum(phase[0] <= at_ns <= phase[1] for at_ns, _ in points) < _MIN_READINGS:
        return None
    joules = _joules(meter, points, *phase)
    return None if joules is None else joules / tokens

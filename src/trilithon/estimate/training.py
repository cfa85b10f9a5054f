"""The atlas as observations for the fit, the errors for models that were left out, and intervals from these."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import median

from trilithon.estimate.fit import Design, Observation
from trilithon.estimate.predict import Phase, group_of, log_seconds, terms_for
from trilithon.estimate.rows import Measurement, why_dropped
from trilithon.estimate.terms import Case, case_of
from trilithon.tables import table_beside

__all__ = ["Residual", "TrainingRow", "errors_left_out", "interval_multiples", "quantile", "residual", "training_rows"]

_KERNELS = table_beside(__file__, "families.toml")["kernels"]
# For a fit that begins near its end.
_ROUNDS_NEAR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """A published row as a point for one phase."""

    row: Measurement
    case: Case
    group: str
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """`error` is log(measured / estimated seconds), `scale` what `log_seconds` gives for it."""

    point: TrainingRow
    error: float
    scale: float


def training_rows(rows: Iterable[Measurement], phase: Phase) -> list[TrainingRow]:
    """The rows that measured this phase and can be described; many rows of one thing weigh less each."""
    cases = [(row, case) for row in rows if not why_dropped(row) and (case := case_of(row)) is not None]
    kernels = _kernel_paths(cases)
    points = []
    for row, case in cases:
        seconds = _seconds(row, case, phase)
        if seconds is None:
            continue
        described = replace(case, kernel=kernels.get(_build(row), ""))
        terms, whole = terms_for(phase, described)
        seen = Observation(terms=terms, whole=whole, seconds=seconds)
        points.append(TrainingRow(row=row, case=described, group=group_of(phase, described), observation=seen))
    counts = Counter(_thing(point) for point in points)
    return [
        replace(point, observation=replace(point.observation, weight=counts[_thing(point)] ** -0.5)) for point in points
    ]


def errors_left_out(points: Sequence[TrainingRow]) -> list[Residual]:
    """The errors for each model when the fit has none of its rows. Each of these fits begins with the effects of all
    rows, which are near."""
    design = Design([point.observation for point in points])
    whole = design.fit()
    rows: dict[str, list[int]] = defaultdict(list)
    for number, point in enumerate(points):
        rows[point.case.size.key].append(number)
    residuals = []
    for numbers in rows.values():
        effects = design.fit(start=whole, without=numbers, rounds=_ROUNDS_NEAR)
        residuals += [residual(points[number], effects) for number in numbers]
    return residuals


def residual(point: TrainingRow, effects: Mapping[str, float]) -> Residual:
    seen = point.observation
    logarithm, scale = log_seconds(list(seen.terms), seen.whole, effects)
    return Residual(point=point, error=log(seen.seconds) - logarithm, scale=scale)


def interval_multiples(residuals: Iterable[Residual]) -> dict[str, tuple[float, float]]:
    """Per group the multiples of the scale that 80% and 95% of models stay within: conformal, each model weighs the
    same, and one more model, which is to come, lies outside of all."""
    groups: dict[str, list[Residual]] = defaultdict(list)
    for seen in residuals:
        groups[seen.point.group].append(seen)
    return {group: (quantile(seen, 0.80), quantile(seen, 0.95)) for group, seen in sorted(groups.items())}


def quantile(residuals: Sequence[Residual], level: float) -> float:
    counts = Counter(seen.point.case.size.key for seen in residuals)
    ordered = sorted((abs(seen.error) / seen.scale, 1 / counts[seen.point.case.size.key]) for seen in residuals)
    needed, passed = level * (len(counts) + 0.5), 0.0
    for score, weight in ordered:
        passed += weight
        if passed >= needed:
            return score
    return ordered[-1][0] * 1.25


def _seconds(row: Measurement, case: Case, phase: Phase) -> float | None:
    if phase == "decode":
        return 1 / row.decode_tps if row.decode_tps else None
    if row.ttft_ms:
        return row.ttft_ms / 1000 if row.prompt_tokens else None
    return case.prompt / row.prefill_tps if row.prefill_tps else None


def _thing(point: TrainingRow) -> tuple[str, ...]:
    row = point.row
    return row.source, point.case.size.key, row.quant, row.engine, row.machine


def _build(row: Measurement) -> tuple[str, ...]:
    return row.source, row.engine, row.quant.upper(), row.threads_or_cores


def _kernel_paths(cases: Iterable[tuple[Measurement, Case]]) -> dict[tuple[str, ...], str]:
    """The path of each CPU build, which publications do not name: by the rate that it reached."""
    rates: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row, case in cases:
        if case.family.unit == "cpu" and row.prefill_tps and row.chip in _KERNELS["chips"]:
            few_rows = 2 if case.size.active is not None else 1
            rates[_build(row)].append(2e-9 * case.size.read * row.prefill_tps * few_rows)
    return {
        build: "fast" if median(seen) > _KERNELS["fast"][build[2]] else "plain"
        for build, seen in rates.items()
        if build[2] in _KERNELS["fast"]
    }

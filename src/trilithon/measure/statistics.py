"""Intervals and verdicts from values, one per run. Pure: the same values always give the same result.

docs/methodology.md ("From runs to verdicts") explains the methods and constants; `benchmarks/verdicts.py` measures
their error rates. scipy is imported where a verdict is made: it takes 70 MB and most of a second, which a board that
measures needs for the models."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trilithon.measure.reasons import Say, english

__all__ = [
    "DISPLAY_LEVEL",
    "LEAST_RUNS",
    "NEGLIGIBLE",
    "RUNS_FOR_AN_INTERVAL",
    "SOUGHT",
    "VERDICT_LEVEL",
    "Answer",
    "Interval",
    "RatioResult",
    "Verdict",
    "compare",
    "interval",
    "mean_above",
    "narrow_enough",
    "ratio",
    "runs_to_find",
]

Answer = Literal["better", "worse", "same", "not comparable"]
Values = Sequence[float]
_Array = NDArray[np.float64]

DISPLAY_LEVEL = 0.95
"""Confidence of the interval of a single value."""
VERDICT_LEVEL = 0.99
"""Confidence at which a difference is claimed, and of every interval of a ratio."""
NEGLIGIBLE = 0.01
"""A relative difference below this is "same": a restart of a program can change its speed by as much."""
SOUGHT = 0.03
"""A relative difference worth knowing. Where it was not found, the reason says how many runs it takes to find it."""
RUNS_FOR_AN_INTERVAL = 3
LEAST_RUNS = 5
"""Runs on each side below which Mann-Whitney cannot reach VERDICT_LEVEL: p is at least 2 / C(2n, n)."""

# A difference of the smallest effect is found about every second time, of twice as much in 95% of campaigns. Both
# constants were fitted with the noise of benchmarks/verdicts.py. A t test would need 1.64 and 36; the noise of few runs
# is itself uncertain, and disturbed runs cost more.
_SURE = 2.0
_RUNS_BY_NOISE = 100
_RUNS_WITH_A_DISTURBED = 13  # fewer are spoiled by one disturbed run, which fewer may not have shown either
_RUNS_NAMED = 99  # from more on a quieter machine is the better advice

_RUNS_FOR_PAIRS = 8  # Wilcoxon's p is at least 2 / 2**n
_ROUNDING = 1e-9  # the choice must not depend on which side comes first
_EXACT_VALUES = 100  # above this, the exact distribution costs time and gives the same result


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its interval; the ends are None for less than RUNS_FOR_AN_INTERVAL values."""

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioResult:
    """a's median divided by b's. Values that need more runs are None.

    `smallest_effect` is the smallest relative difference that could have been detected: with the actual difference
    removed, the factor by which one side has to be scaled before both tests claim a difference. `method` names the
    test of `p_value`: "Mann-Whitney", or "Wilcoxon" where the values of each round were compared. `noise` is the
    deviation of one run's logarithm, robust against disturbed runs."""

    ratio: float
    low: float | None
    high: float | None
    p_value: float | None
    smallest_effect: float | None
    method: Literal["Mann-Whitney", "Wilcoxon"]
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """a compared with b, the reason in words, and the ratio (None where it is undefined)."""

    answer: Answer
    reason: str
    ratio: RatioResult | None = None


def interval(values: Values, *, level: float = DISPLAY_LEVEL) -> Interval:
    """Percentile bootstrap interval of the median. Raises ValueError without values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    ordered = np.sort(np.asarray(values, dtype=float))
    median = float(np.median(ordered))
    if len(ordered) < RUNS_FOR_AN_INTERVAL:
        return Interval(median, None, None)
    low, high = _percentiles(ordered, _median_weights(len(ordered)), level)
    return Interval(median, low, high)


def mean_above(values: Values) -> float:
    """The upper end of the 95% interval of the mean, by Student's t. Raises ValueError for fewer than 2 values."""
    from scipy import stats

    if len(values) < 2:
        raise ValueError("the interval of a mean needs at least two values")
    tail = (1 + DISPLAY_LEVEL) / 2
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) + float(stats.t.ppf(tail, len(values) - 1)) * error


def narrow_enough(values: Values, relative_width: float = 0.02) -> bool:
    """Whether the 95% interval of the median is narrower than this fraction of it: the stopping rule of a campaign.

    It does not compare placements, so that stopping cannot favour a verdict."""
    if len(values) < LEAST_RUNS:
        return False
    result = interval(values)
    assert result.low is not None and result.high is not None  # RUNS_FOR_AN_INTERVAL is less
    return result.high - result.low <= relative_width * abs(result.median)


def ratio(a: Values, b: Values, *, level: float = VERDICT_LEVEL, paired: bool = False) -> RatioResult:
    """a's median divided by b's, with its bootstrap interval at `level` and the two-sided p of "no difference".

    `paired`: a[i] and b[i] are of the same round; the pairs are used where they can detect a smaller effect. Raises
    ValueError for values that are not above 0, and for pairs of unequal length."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not (len(first) and len(second) and _positive(first) and _positive(second)):
        raise ValueError("a ratio needs values above 0 on both sides")
    if paired and len(first) != len(second):
        raise ValueError("pairs need as many values on one side as on the other")
    unpaired = _unpaired_ratio(first, second, level)
    if not paired or len(first) < _RUNS_FOR_PAIRS:
        return unpaired
    by_round = _paired_ratio(np.log(first) - np.log(second), level)
    return by_round if _is_more_sensitive(by_round, unpaired) else unpaired


def compare(a: Values, b: Values, *, higher_is_better: bool, paired: bool = False, say: Say = english) -> Verdict:
    """a compared with b. A difference is claimed when the interval of the ratio excludes 1, the rank test agrees at the
    same level, and the ratio differs from 1 by NEGLIGIBLE or more."""
    if min(len(a), len(b)) < LEAST_RUNS:
        few = "reason_few_each" if len(a) == len(b) else "reason_few"
        return Verdict("not comparable", say(few, a=len(a), b=len(b), least=LEAST_RUNS))
    if not (_positive(np.asarray(a, dtype=float)) and _positive(np.asarray(b, dtype=float))):
        return Verdict("not comparable", say("reason_no_ratio"))
    result = ratio(a, b, paired=paired)
    assert result.p_value is not None and result.smallest_effect is not None  # LEAST_RUNS suffice
    if not _claims_difference(result):
        reason = say("reason_shown_none", percent=result.smallest_effect * 100)
        return Verdict("same", reason + _more_runs(result, min(len(a), len(b)), say), result)
    difference = _difference(result.ratio, say)
    if _relative_difference(result.ratio) < NEGLIGIBLE:
        return Verdict("same", say("reason_negligible", difference=difference, negligible=NEGLIGIBLE), result)
    reason = say("reason_claimed", difference=difference, p=_p_text(result.p_value))
    return Verdict("better" if (result.ratio > 1) == higher_is_better else "worse", reason, result)


def runs_to_find(result: RatioResult, runs: int) -> int:
    """About how many runs on each side find a difference of SOUGHT in 95% of campaigns with the noise of these; `runs`
    where those suffice. Two estimates, of which the lower one counts: the smallest effect falls with the root of the
    number of runs, and the number rises with the square of the noise. The first is far too high where a run of few was
    disturbed. Odd, as a median of an even number may be half a disturbed run's. Raises ValueError for a ratio without
    a smallest effect."""
    if result.smallest_effect is None:
        raise ValueError("a ratio of too few runs has no smallest effect")
    by_effect = runs * (_SURE * result.smallest_effect / SOUGHT) ** 2
    if by_effect <= runs:
        return runs
    by_noise = _RUNS_BY_NOISE * (result.noise / math.log1p(SOUGHT)) ** 2
    return max(math.ceil(min(by_effect, by_noise)), _RUNS_WITH_A_DISTURBED, runs + 1) | 1


def _more_runs(result: RatioResult, runs: int, say: Say) -> str:
    needed = runs_to_find(result, runs)
    if needed <= runs:
        return ""
    key = "reason_needs_runs" if needed <= _RUNS_NAMED else "reason_needs_many"
    return "; " + say(key, sought=SOUGHT, runs=min(needed, _RUNS_NAMED))


def _positive(values: _Array) -> bool:
    return bool(np.all(np.isfinite(values) & (values > 0)))


@cache
def _median_weights(count: int) -> _Array:
    """The exact bootstrap distribution of the median: the probability that a resample's median is the i-th smallest
    value. Random resampling is not needed, since the rank of a resample's order statistic is binomial (Maritz and
    Jarrett 1978, Efron 1979). For an even number, the lower and the upper median count half each."""
    ranks = ((count + 1) // 2, count // 2 + 1)
    reached = [sum(_at_least(rank, count, below / count) for rank in ranks) / 2 for below in range(count + 1)]
    return np.diff(np.asarray(reached, dtype=float))


def _at_least(rank: int, count: int, chance: float) -> float:
    """The probability of `rank` (more than 0) or more successes in `count` tries."""
    if not 0 < chance < 1:
        return chance
    step = math.log(chance / (1 - chance))
    start = math.lgamma(count + 1) + count * math.log(1 - chance)
    terms = (
        start - math.lgamma(hits + 1) - math.lgamma(count - hits + 1) + hits * step for hits in range(rank, count + 1)
    )
    return math.fsum(math.exp(term) for term in terms)


def _percentiles(values: _Array, weights: _Array, level: float) -> tuple[float, float]:
    """The values that cut off (1 - level) / 2 at each end, computed alike from both, so that 1/x mirrors them."""
    order = np.argsort(values, kind="stable")
    ordered, tail = values[order], (1 - level) / 2
    from_below = np.cumsum(weights[order])
    from_above = np.cumsum(weights[order][::-1])
    return float(ordered[np.argmax(from_below >= tail)]), float(ordered[::-1][np.argmax(from_above >= tail)])


def _is_more_sensitive(by_round: RatioResult, unpaired: RatioResult) -> bool:
    """Pairs cancel drift, and suffer more from disturbed runs. The choice does not depend on the difference itself,
    which is removed from a smallest effect."""
    if by_round.smallest_effect is None or unpaired.smallest_effect is None:
        return False
    return by_round.smallest_effect < unpaired.smallest_effect * (1 - _ROUNDING)


def _unpaired_ratio(a: _Array, b: _Array, level: float) -> RatioResult:
    ratio_of_medians = float(np.median(a) / np.median(b))
    low = high = p_value = effect = None
    runs = min(len(a), len(b))
    if runs >= RUNS_FOR_AN_INTERVAL:
        ratios = np.divide.outer(np.sort(a), np.sort(b)).ravel()
        low, high = _percentiles(ratios, np.outer(_median_weights(len(a)), _median_weights(len(b))).ravel(), level)
        p_value = _mann_whitney(a, b)
        if runs >= LEAST_RUNS:
            effect = _effect(
                np.log(np.divide.outer(a, b).ravel() / ratio_of_medians),
                _critical_u(len(a), len(b), level),
                math.log(low / ratio_of_medians),
                math.log(high / ratio_of_medians),
            )
    return RatioResult(
        ratio=ratio_of_medians,
        low=low,
        high=high,
        p_value=p_value,
        smallest_effect=effect,
        method="Mann-Whitney",
        noise=_noise(np.concatenate([np.log(side) - math.log(np.median(side)) for side in (a, b)])),
    )


def _paired_ratio(logs: _Array, level: float) -> RatioResult:
    """From the logarithms of each round's own ratio, in which what both sides share cancels out."""
    middle = float(np.median(logs))
    low, high = _percentiles(np.sort(logs), _median_weights(len(logs)), level)
    averages = np.add.outer(logs, logs)[np.triu_indices(len(logs))] / 2 - middle
    return RatioResult(
        ratio=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high),
        p_value=_wilcoxon(logs),
        smallest_effect=_effect(averages, _critical_t(len(logs), level), low - middle, high - middle),
        method="Wilcoxon",
        noise=_noise(logs - middle) / math.sqrt(2),
    )


def _noise(deviations: _Array) -> float:
    """The standard deviation of a normal distribution whose median absolute deviation is that of these."""
    return float(np.median(np.abs(deviations))) * 1.4826


def _mann_whitney(a: _Array, b: _Array) -> float:
    """The p value: exact without ties, else by the normal approximation with tie correction."""
    from scipy import stats

    values = np.concatenate((a, b))
    distinct = len(np.unique(values))
    if distinct == 1:
        return 1.0
    exact = distinct == len(values) <= _EXACT_VALUES
    return float(stats.mannwhitneyu(a, b, method="exact" if exact else "asymptotic").pvalue)


def _wilcoxon(differences: _Array) -> float:
    from scipy import stats

    nonzero = differences[differences != 0]
    exact = len(np.unique(np.abs(nonzero))) == len(nonzero) <= _EXACT_VALUES
    if len(nonzero) < _RUNS_FOR_PAIRS:
        return 1.0
    return float(stats.wilcoxon(nonzero, method="exact" if exact else "approx").pvalue)


def _effect(differences: _Array, critical: int, low: float, high: float) -> float | None:
    """The relative shift of one side from which both tests claim a difference. A rank statistic counts how many of
    `differences` (logarithms: each a with each b; with pairs, the Walsh averages) are beyond 0. The test claims a
    difference once at most `critical` are left on one side, so that one of them is the shift (Hodges and Lehmann
    1963). The interval, `low` to `high` as logarithms, is shifted too, and must exclude 0."""
    if critical < 0:
        return None
    ordered = np.sort(differences)
    ranked = max(-float(ordered[critical]), float(ordered[-1 - critical]))
    return max(math.expm1(max(ranked, -low, high)), NEGLIGIBLE)


@cache
def _critical_u(count: int, other: int, level: float) -> int:
    """The largest U of Mann-Whitney that claims a difference at `level`; -1 where none does."""

    def p_value(u: int) -> float:
        """Of values that are constructed so that a is above b in `u` pairs."""
        above, within = divmod(u, other)
        a = np.arange(-count, 0.0)
        a[:above] = np.arange(above) + other
        a[above] = within - 0.5
        return _mann_whitney(a, np.arange(other, dtype=float))

    return bisect_right(range(count * other // 2), 1 - level, key=p_value) - 1


@cache
def _critical_t(count: int, level: float) -> int:
    """The largest rank sum of Wilcoxon that claims a difference at `level`; -1 where none does."""

    def p_value(rank_sum: int) -> float:
        """Of differences of which the negative ones have ranks with the sum `rank_sum`."""
        signed = np.arange(1.0, count + 1)
        for rank in range(count, 0, -1):
            if rank <= rank_sum:
                signed[rank - 1], rank_sum = -rank, rank_sum - rank
        return _wilcoxon(signed)

    return bisect_right(range(count * (count + 1) // 4), 1 - level, key=p_value) - 1


def _claims_difference(result: RatioResult) -> bool:
    assert result.low is not None and result.high is not None and result.p_value is not None
    return (result.low > 1 or result.high < 1) and result.p_value <= 1 - VERDICT_LEVEL


def _relative_difference(value: float) -> float:
    return max(value, 1 / value) - 1


def _difference(value: float, say: Say) -> str:
    if value >= 2:
        return say("reason_times", ratio=value)
    return say("reason_more" if value > 1 else "reason_less", share=abs(value - 1))


def _p_text(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"

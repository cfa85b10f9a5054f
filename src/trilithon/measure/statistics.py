"""From values, one per run, to intervals and verdicts. Pure: the same values always give the same answer.

Why these methods and these constants: docs/methodology.md, "From runs to verdicts"; `benchmarks/verdicts.py`
measures that they hold. scipy's tests are imported where a verdict is made: they take 70 MB and most of a second, which
a board that measures should keep for the models.
"""

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
    "RUNS_FOR_A_VERDICT",
    "VERDICT_LEVEL",
    "Answer",
    "Interval",
    "RatioResult",
    "Verdict",
    "compare",
    "interval",
    "narrow_enough",
    "ratio",
]

Answer = Literal["better", "worse", "same", "not comparable"]
Values = Sequence[float]
_Array = NDArray[np.float64]

DISPLAY_LEVEL = 0.95
"""Confidence of the interval beside a single figure."""
VERDICT_LEVEL = 0.99
"""Confidence at which a difference is claimed, and of every interval of a ratio."""
NEGLIGIBLE = 0.01
"""A relative difference under this is "same": starting a program again can move its speed by as much."""
RUNS_FOR_AN_INTERVAL = 3
LEAST_RUNS = 5
"""Fewest runs a side from which Mann-Whitney can say anything at VERDICT_LEVEL: p is at least 2 / C(2n, n)."""
RUNS_FOR_A_VERDICT = 13
"""Runs a side that find a 5% slowdown at 1% noise in over 95% of cases even where one run in twenty is disturbed."""

_RUNS_FOR_PAIRS = 8  # Wilcoxon's p is at least 2 / 2**n
_ROUNDING = 1e-9  # sides that are swapped must not choose differently
_EXACT_VALUES = 100  # the exact distribution costs time and says nothing more beyond it


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its interval; the ends are None under RUNS_FOR_AN_INTERVAL values."""

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioResult:
    """How many times b's median a's is. What too few runs cannot tell is None.

    `smallest_effect` is the smallest relative difference that these data could have shown: with their own
    difference taken out, the factor by which one side has to be moved before both tests claim it. `method` names
    the test behind `p_value`: "Mann-Whitney", or "Wilcoxon" where rounds were compared one by one.
    """

    ratio: float
    low: float | None
    high: float | None
    p_value: float | None
    smallest_effect: float | None
    method: Literal["Mann-Whitney", "Wilcoxon"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a is beside b, why in words, and the ratio behind it (None where there is no sense in one)."""

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


def narrow_enough(values: Values, relative_width: float = 0.02) -> bool:
    """Whether the 95% interval of the median is narrower than this fraction of it: a campaign's rule to stop.

    It looks at no other placement, so that stopping by it cannot favour a verdict.
    """
    if len(values) < LEAST_RUNS:
        return False
    found = interval(values)
    if found.low is None or found.high is None:
        return False
    return found.high - found.low <= relative_width * abs(found.median)


def ratio(a: Values, b: Values, *, level: float = VERDICT_LEVEL, paired: bool = False) -> RatioResult:
    """a's median ÷ b's with its bootstrap interval at `level`, and the two-sided p of "there is no difference".

    `paired` says that a[i] and b[i] are of the same round; the pairs are used where they can show a smaller effect.
    Raises ValueError for values that are not above 0 and for pairs that are not.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not (len(first) and len(second) and _positive(first) and _positive(second)):
        raise ValueError("a ratio needs values above 0 on both sides")
    if paired and len(first) != len(second):
        raise ValueError("pairs need as many values on one side as on the other")
    whole = _unpaired_ratio(first, second, level)
    if not paired or len(first) < _RUNS_FOR_PAIRS:
        return whole
    by_round = _paired_ratio(np.log(first) - np.log(second), level)
    return by_round if _sees_more(by_round, whole) else whole


def compare(a: Values, b: Values, *, higher_is_better: bool, paired: bool = False, say: Say = english) -> Verdict:
    """What a is beside b. A difference is claimed where the interval of the ratio excludes 1, the rank test agrees
    at the same level, and the ratio is off 1 by NEGLIGIBLE or more."""
    if min(len(a), len(b)) < LEAST_RUNS:
        few = "reason_few_each" if len(a) == len(b) else "reason_few"
        return Verdict("not comparable", say(few, a=len(a), b=len(b), least=LEAST_RUNS))
    if not (_positive(np.asarray(a, dtype=float)) and _positive(np.asarray(b, dtype=float))):
        return Verdict("not comparable", say("reason_no_ratio"))
    found = ratio(a, b, paired=paired)
    if not _claims(found):
        return Verdict("same", say("reason_shown_none", percent=(found.smallest_effect or 0.0) * 100), found)
    difference = _difference(found.ratio, say)
    if _size(found.ratio) < NEGLIGIBLE:
        return Verdict("same", say("reason_negligible", difference=difference, negligible=NEGLIGIBLE), found)
    words = say("reason_claimed", difference=difference, p=_p_words(found.p_value or 0.0))
    return Verdict("better" if (found.ratio > 1) == higher_is_better else "worse", words, found)


def _positive(values: _Array) -> bool:
    return bool(np.all(np.isfinite(values) & (values > 0)))


@cache
def _median_weights(count: int) -> _Array:
    """The bootstrap distribution of the median, exactly: the probability that a resample's median is the i-th
    smallest value. No random resampling is needed, since the rank of a resample's order statistic is binomial
    (Maritz and Jarrett 1978, Efron 1979). Of an even number, the lower and the upper median count half each.
    """
    ranks = ((count + 1) // 2, count // 2 + 1)
    reached = [sum(_at_least(rank, count, below / count) for rank in ranks) / 2 for below in range(count + 1)]
    return np.diff(np.asarray(reached, dtype=float))


def _at_least(rank: int, count: int, chance: float) -> float:
    """The probability of `rank` or more successes in `count` tries, `rank` being above 0."""
    if not 0 < chance < 1:
        return chance
    step = math.log(chance / (1 - chance))
    start = math.lgamma(count + 1) + count * math.log(1 - chance)
    terms = (
        start - math.lgamma(hits + 1) - math.lgamma(count - hits + 1) + hits * step for hits in range(rank, count + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _percentiles(values: _Array, weights: _Array, level: float) -> tuple[float, float]:
    """The values that cut off (1 - level) / 2 at each end; alike from both ends, so that 1/x mirrors them."""
    order = np.argsort(values, kind="stable")
    ordered, tail = values[order], (1 - level) / 2
    from_below = np.cumsum(weights[order])
    from_above = np.cumsum(weights[order][::-1])
    return float(ordered[np.argmax(from_below >= tail)]), float(ordered[::-1][np.argmax(from_above >= tail)])


def _sees_more(by_round: RatioResult, whole: RatioResult) -> bool:
    """Pairs see through drift and suffer more from disturbed runs. The choice is blind to who is ahead: a smallest
    effect has the difference taken out."""
    if by_round.smallest_effect is None or whole.smallest_effect is None:
        return False
    return by_round.smallest_effect < whole.smallest_effect * (1 - _ROUNDING)


def _unpaired_ratio(a: _Array, b: _Array, level: float) -> RatioResult:
    found = float(np.median(a) / np.median(b))
    low = high = p_value = effect = None
    if min(len(a), len(b)) >= RUNS_FOR_AN_INTERVAL:
        ratios = np.divide.outer(np.sort(a), np.sort(b)).ravel()
        low, high = _percentiles(ratios, np.outer(_median_weights(len(a)), _median_weights(len(b))).ravel(), level)
        p_value = _mann_whitney(a, b)
    if low is not None and high is not None and min(len(a), len(b)) >= LEAST_RUNS:
        apart = np.log(np.divide.outer(a, b).ravel()) - math.log(found)
        effect = _effect(apart, _critical_u(len(a), len(b), level), math.log(low / found), math.log(high / found))
    return RatioResult(ratio=found, low=low, high=high, p_value=p_value, smallest_effect=effect, method="Mann-Whitney")


def _paired_ratio(logs: _Array, level: float) -> RatioResult:
    """From the logarithms of each round's own ratio: what both sides of a round share has fallen out."""
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
    )


def _mann_whitney(a: _Array, b: _Array) -> float:
    """Exact without ties, else with the normal approximation corrected for them."""
    from scipy import stats

    together = np.concatenate((a, b))
    distinct = len(np.unique(together))
    if distinct == 1:
        return 1.0
    exact = distinct == len(together) <= _EXACT_VALUES
    return float(stats.mannwhitneyu(a, b, method="exact" if exact else "asymptotic").pvalue)


def _wilcoxon(differences: _Array) -> float:
    from scipy import stats

    moved = differences[differences != 0]
    exact = len(np.unique(np.abs(moved))) == len(moved) <= _EXACT_VALUES
    if len(moved) < _RUNS_FOR_PAIRS:
        return 1.0
    return float(stats.wilcoxon(moved, method="exact" if exact else "approx").pvalue)


def _effect(apart: _Array, critical: int, low: float, high: float) -> float | None:
    """How far one side must be moved before both tests claim it. A rank statistic counts which of the logarithms
    `apart` (each of a against each of b; with pairs, the Walsh averages) lie beyond 0: the test claims once no more
    than `critical` are left on one side, so that value of them says how far (Hodges and Lehmann 1963). The
    interval, `low` to `high` as logarithms, moves along and claims once it leaves 0 behind.
    """
    if critical < 0:
        return None
    ordered = np.sort(apart)
    ranked = max(-float(ordered[critical]), float(ordered[-1 - critical]))
    return max(math.expm1(max(ranked, -low, high)), NEGLIGIBLE)


@cache
def _critical_u(count: int, other: int, level: float) -> int:
    """The largest of Mann-Whitney's U that is claimed at `level`; -1 where none is."""

    def p_value(u: int) -> float:
        """Of values made so that in `u` pairs a is above b."""
        above, within = divmod(u, other)
        a = np.arange(count, dtype=float) - count - 0.5
        a[:above] += 2 * (count + other)
        a[above] = within - 0.5
        return _mann_whitney(a, np.arange(other, dtype=float))

    return bisect_right(range(count * other // 2), 1 - level, key=p_value) - 1


@cache
def _critical_t(count: int, level: float) -> int:
    """The largest of Wilcoxon's rank sums that is claimed at `level`; -1 where none is."""

    def p_value(rank_sum: int) -> float:
        """Of differences whose negative ones have the ranks that add up to `rank_sum`."""
        signed = np.arange(1.0, count + 1)
        for rank in range(count, 0, -1):
            if rank <= rank_sum:
                signed[rank - 1], rank_sum = -rank, rank_sum - rank
        return _wilcoxon(signed)

    return bisect_right(range(count * (count + 1) // 4), 1 - level, key=p_value) - 1


def _claims(found: RatioResult) -> bool:
    if found.low is None or found.high is None or found.p_value is None:
        return False
    return (found.low > 1 or found.high < 1) and found.p_value <= 1 - VERDICT_LEVEL


def _size(found: float) -> float:
    return max(found, 1 / found) - 1


def _difference(found: float, say: Say) -> str:
    if found >= 2:
        return say("reason_times", ratio=found)
    return say("reason_more" if found > 1 else "reason_less", share=abs(found - 1))


def _p_words(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"

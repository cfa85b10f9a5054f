"""What a tune may say at its end: the ratio of fresh rounds, defaults against the settings that won, and no other."""

from collections.abc import Sequence
from dataclasses import dataclass

from trilithon.measure.statistics import compare, ratio

__all__ = ["FINAL_ROUNDS", "Conclusion", "conclude"]

FINAL_ROUNDS = 9
"""Fixed before, so that stopping cannot favour a result. The fewest that measure/statistics.py compares are 5; with 9
one disturbed run of each side does not hide a gain of 10%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """How many times as fast the settings are as the defaults, `low` to `high` at 99%; `faster`: surely above 1."""

    faster: bool
    ratio: float
    low: float
    high: float
    rounds: int


def conclude(defaults: Sequence[float], tuned: Sequence[float]) -> Conclusion:
    """Of seconds, one per fresh round on each side. Raises ValueError for fewer than 3 rounds."""
    result = ratio(defaults, tuned, paired=len(defaults) == len(tuned))
    if result.low is None or result.high is None:
        raise ValueError("an interval needs at least 3 rounds on each side")
    verdict = compare(tuned, defaults, higher_is_better=False, paired=len(defaults) == len(tuned))
    return Conclusion(
        faster=verdict.answer == "better", ratio=result.ratio, low=result.low, high=result.high, rounds=len(tuned)
    )

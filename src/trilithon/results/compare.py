"""From runs to statements: one row per placement and figure, and a verdict between two of them."""

from dataclasses import dataclass

from trilithon.measure.metrics import Metric
from trilithon.measure.records import QualityRecord, Test

__all__ = ["Estimate", "Row"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over runs with its 95% bootstrap interval, in the metric's unit."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of one placement in one test. `estimate` is None when no run gave it; `note` then says why
    ("failed: segmentation fault", "skipped"). `fraction_of_bandwidth` is set for decode where it is known."""

    placement: str
    model: str
    test: Test
    metric: Metric
    estimate: Estimate | None
    quality: QualityRecord | None
    fraction_of_bandwidth: float | None = None
    note: str = ""

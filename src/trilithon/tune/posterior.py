"""What is known of one challenger's gain over the incumbent: a probability for each gain.

The gain is the logarithm of the incumbent's time divided by the challenger's. A disturbed run must not decide, so the
noise has a narrow part and a wide one."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEGLIGIBLE_GAIN", "Posterior", "pooled_noise"]

NEGLIGIBLE_GAIN = math.log(1.01)
"""Below this a gain is a draw: a restart of a program can change its speed by as much."""

_GRID = np.linspace(-2.5, 2.5, 1001)
_STEP, _FARTHEST = float(_GRID[1] - _GRID[0]), 2.4
_DISTURBED, _WIDER = 0.1, 6.0  # the share of runs that something disturbed, and how many times wider their noise is
_NO_EFFECT, _RESTART = 0.4, 0.01  # before any run: the probability of next to no effect, and what that is
# Before any run: the deviation of one run, and how many residuals that guess weighs.
_NOISE, _NOISE_WEIGHT = 0.03, 10
_ANOTHER_MODEL = 0.04  # by how much the gain of a setting differs from one model to the next
_REFERENCE_SHARE = 0.25  # of a run's variance: the incumbent's time follows from several rounds

Weights = NDArray[np.float64]


class Posterior:
    """`prior` are probabilities on the grid (see `prior` and `widened`); `pairs` are gains, one per round; `noise` is
    the deviation of one run's logarithm."""

    def __init__(self, prior: Weights, pairs: Sequence[float], noise: float):
        logs = np.log(prior)
        spread = max(noise, 1e-3) * math.sqrt(1 + _REFERENCE_SHARE)
        for pair in pairs:
            off = _GRID - min(max(pair, -_FARTHEST), _FARTHEST)
            logs += np.log((1 - _DISTURBED) * _normal(off, spread) + _DISTURBED * _heavy(off, _WIDER * spread))
        weights = np.exp(logs - logs.max())
        self._weights: Weights = weights / weights.sum()
        self._noise = spread
        self.mean = float(self._weights @ _GRID)

    @classmethod
    def prior(cls, expected: float, deviation: float, *, known: bool = False) -> Weights:
        """Before any run: a gain of about `expected`, or none at all, unless it is `known` of another model."""
        width = max(deviation, _RESTART)
        if known:
            return _heavy(_GRID - expected, _ANOTHER_MODEL)
        return (1 - _NO_EFFECT) * _heavy(_GRID - expected, width) + _NO_EFFECT * _normal(_GRID, _RESTART)

    def widened(self, deviation: float) -> Weights:
        """As a prior for runs with another incumbent, where the gain may differ by about this much."""
        kernel = _normal(_GRID, max(deviation, _STEP))
        return np.convolve(self._weights, kernel / kernel.sum(), mode="same") + 1e-12

    def above(self, gain: float) -> float:
        """The probability that the gain is more than this."""
        return float(self._weights[gain + _STEP / 2 < _GRID].sum())

    def worth(self, kept: float) -> float:
        """By how much one more run is expected to raise the gain of the better of this and `kept` (Frazier's knowledge
        gradient, with the posterior taken for a normal distribution)."""
        variance = float(self._weights @ (_GRID - self.mean) ** 2)
        move = variance / math.sqrt(variance + self._noise**2)
        away = abs(self.mean - kept) / move
        return move * (math.exp(-0.5 * away**2) / math.sqrt(2 * math.pi) - away * 0.5 * math.erfc(away / math.sqrt(2)))


def pooled_noise(contests: Sequence[Sequence[float]]) -> float:
    """The deviation of one run's logarithm, from the pairs of several challengers; robust against disturbed runs."""
    residuals = [
        abs(pair - middle) * math.sqrt(len(pairs) / (len(pairs) - 1))
        for pairs in contests
        if len(pairs) > 1
        for middle in [median(pairs)]
        for pair in pairs
    ]
    seen = 1.4826 * median(residuals) / math.sqrt(1 + _REFERENCE_SHARE) if residuals else 0.0
    total = _NOISE_WEIGHT + len(residuals)
    return math.sqrt((_NOISE_WEIGHT * _NOISE**2 + len(residuals) * seen**2) / total)


def _normal(off: Weights, spread: float) -> Weights:
    return np.asarray(np.exp(-0.5 * (off / spread) ** 2) / spread + 1e-12)


def _heavy(off: Weights, spread: float) -> Weights:
    """Student's t with 3 degrees of freedom, up to the factor that makes it comparable with _normal."""
    return np.asarray(0.92 * (1 + (off / spread) ** 2 / 3) ** -2 / spread + 1e-12)

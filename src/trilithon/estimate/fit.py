"""Fits the effects: a robust Gauss–Newton iteration with a Gaussian prior around zero for the logarithm of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trilithon.estimate.priors import prior_deviation
from trilithon.estimate.terms import Effects, Term

__all__ = ["Design", "Observation", "fit"]

Vector = NDArray[np.float64]
_ROUNDS = 80
_CONVERGED = 2e-3
_NOISE = 0.08
"""The deviation of the logarithm of a careful measurement from the next one of the same thing."""
_ROBUST = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """`seconds` that were measured; `weight` below 1 for one of many rows of the same thing."""

    terms: Sequence[Term]
    whole: Effects
    seconds: float
    weight: float = 1.0


def fit(observations: Sequence[Observation], start: Mapping[str, float] | None = None) -> dict[str, float]:
    """The effects that explain the observations; `start` has means to begin with."""
    return Design(observations).fit(start=start)


class Design:
    """The observations as arrays, to fit all or a part of them."""

    def __init__(self, observations: Sequence[Observation]) -> None:
        names: dict[str, int] = {}
        for seen in observations:
            for effects in (seen.whole, *(term.effects for term in seen.terms)):
                for name in effects:
                    names.setdefault(name, len(names))
        most = max((len(seen.terms) for seen in observations), default=1)
        shape = (len(observations), most, len(names))
        self._names = names
        self._effects = np.zeros(shape)
        self._logs = np.full(shape[:2], -1e9)
        self._whole = np.zeros((shape[0], shape[2]))
        for row, seen in enumerate(observations):
            for number, term in enumerate(seen.terms):
                self._logs[row, number] = math.log(term.seconds)
                for name, value in term.effects.items():
                    self._effects[row, number, names[name]] = value
            for name, value in seen.whole.items():
                self._whole[row, names[name]] = value
        self._target = np.log([seen.seconds for seen in observations])
        self._weights = np.array([seen.weight for seen in observations])
        self._precision = np.array([prior_deviation(name) ** -2 for name in names])

    def fit(
        self, *, start: Mapping[str, float] | None = None, without: Sequence[int] = (), rounds: int = _ROUNDS
    ) -> dict[str, float]:
        """The effects of the rows except `without`; those that only these have are left out."""
        weights = self._weights.copy()
        weights[list(without)] = 0.0
        theta = np.array([(start or {}).get(name, 0.0) for name in self._names])
        for _ in range(rounds):
            value, slope = self._at(theta)
            residual = self._target - value
            weight = weights / _NOISE**2 / (1 + (residual / (_NOISE * _ROBUST)) ** 2)
            normal = slope.T @ (slope * weight[:, None]) + np.diag(self._precision)
            step = np.linalg.solve(normal, slope.T @ (weight * residual) - self._precision * theta)
            theta = theta + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
            if float(np.abs(step).max()) < _CONVERGED:
                break
        kept = weights > 0
        used = np.asarray(np.abs(self._effects[kept]).sum(axis=(0, 1)) + np.abs(self._whole[kept]).sum(axis=0)) > 0
        return {name: float(theta[number]) for name, number in self._names.items() if used[number]}

    def _at(self, theta: Vector) -> tuple[Vector, Vector]:
        """Logarithms of the seconds, and their derivatives by the effects."""
        logs = self._logs + self._effects @ theta
        top = logs.max(axis=1)
        shares = np.exp(logs - top[:, None])
        total = shares.sum(axis=1)
        value = top + np.log(total) + self._whole @ theta
        slope = np.matmul((shares / total[:, None])[:, None, :], self._effects)[:, 0, :] + self._whole
        return value, slope

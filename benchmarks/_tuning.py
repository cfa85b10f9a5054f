"""Simulated boards for benchmarks/tune.py: ten settings, their true times, and noisy runs that are counted."""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilithon.engines.variables import Choice, Variable
from trilithon.tune.conclusion import FINAL_ROUNDS, conclude
from trilithon.tune.race import Challenger, Check, Race, Setting

__all__ = ["SimulatedBoard", "gaining_board", "run_race", "run_random", "run_tpe", "says_as_good"]

# By how much the best choice of each of the ten settings may change the logarithm of the time: placement, mask and
# threads, threads of a batch, speculation, micro-batch, NPU cores, pipeline, flash attention and KV type, load mode,
# priority. Engines declare such figures too; what is true of a board is drawn around them.
_GAINS = (0.6, 0.4, 0.25, 0.15, 0.1, 0.06, 0.04, 0.03, 0.02, 0.02)
_CHOICES = (3, 4, 3, 2, 3, 3, 2, 3, 2, 2)
_LOSSY = (0, 6, 7)  # settings with choices that may be forbidden
LEAST_GAIN = 1.3  # on a board where something is to be gained
_ESTIMATE_ERROR = 0.5  # of a placement's expected deviation
_NOISE, _DISTURBED = 0.04, 0.06


class SimulatedBoard:
    """`gains`: whether anything is faster than the defaults. `runs` counts measurements. `forbidden` choices give wrong
    answers, and are fast."""

    def __init__(self, seed: int, *, gains: bool = True):
        self._random = np.random.default_rng([seed, 1])
        draw = np.random.default_rng([seed, 0])
        self._effects = [self._drawn(draw, gain, count, gains) for gain, count in zip(_GAINS, _CHOICES, strict=True)]
        # Some pairs of settings act on each other: a choice gains less, or more, with another one.
        self._pairs = {
            (a, b): draw.normal(0, 0.1 * min(_GAINS[a], _GAINS[b]), (_CHOICES[a], _CHOICES[b])) * gains
            for a, b in itertools.combinations(range(len(_GAINS)), 2)
            if draw.random() < 0.15
        }
        for table in self._pairs.values():
            table[0, :] = table[:, 0] = 0
        self.forbidden = {(n, c) for n in _LOSSY for c in range(1, _CHOICES[n]) if draw.random() < 0.5}
        for number, choice in self.forbidden:  # what is wrong is often fast
            self._effects[number][choice] = abs(draw.normal(0.3, 0.1))
        self.crashing = {(n, c) for n, count in enumerate(_CHOICES) for c in range(1, count) if draw.random() < 0.03}
        self.crashing -= self.forbidden
        self._drift, self._phase = draw.uniform(-0.15, 0.15), draw.uniform(0, 2 * math.pi)
        self.runs = 0
        # What an estimate says of the placements.
        expected = self._effects[0] + draw.normal(0, _GAINS[0] * _ESTIMATE_ERROR, _CHOICES[0])
        self.variables = tuple(
            Variable(
                name=f"setting {n}",
                choices=tuple(
                    Choice(
                        options={"c": str(c)},
                        lossy=n in _LOSSY and c > 0,
                        expected_gain=float(expected[c]) if n == 0 and c else 0.0,
                    )
                    for c in range(count)
                ),
                expected_gain=gain * _ESTIMATE_ERROR if n == 0 else gain,
            )
            for n, (gain, count) in enumerate(zip(_GAINS, _CHOICES, strict=True))
        )

    def _drawn(self, draw: np.random.Generator, gain: float, count: int, gains: bool) -> NDArray[np.float64]:
        """Half of the choices change next to nothing; the others gain or lose about what is expected."""
        drawn = np.where(draw.random(count) < 0.5, 0.0, draw.standard_t(4, count) * gain)
        effects = np.clip(drawn, -1.5, 1.0) if gains else -np.abs(drawn)
        effects[0] = 0.0
        return effects

    def gain(self, setting: Setting) -> float:
        """The true speed, as a multiple of the defaults'."""
        total = sum(float(effects[choice]) for effects, choice in zip(self._effects, setting, strict=True))
        total += sum(float(table[setting[a], setting[b]]) for (a, b), table in self._pairs.items())
        return math.exp(total)

    @cached_property
    def best_gain(self) -> float:
        """Of all allowed settings, by ascent in each pair of them from several starts."""
        draw = np.random.default_rng(7)
        starts = [tuple(int(draw.choice(self.allowed(n))) for n in range(len(_GAINS))) for _ in range(2)]
        return max(map(self._ascended, [(0,) * len(_GAINS), *starts]))

    def _ascended(self, setting: Setting) -> float:
        top = self.gain(setting)
        while True:
            before = top
            for a, b in itertools.combinations(range(len(_GAINS)), 2):
                for choice, other in itertools.product(self.allowed(a), self.allowed(b)):
                    trial = list(setting)
                    trial[a], trial[b] = choice, other
                    if self.gain(tuple(trial)) > top:
                        setting, top = tuple(trial), self.gain(tuple(trial))
            if top <= before:
                return top

    def right(self, number: int) -> list[int]:
        return [choice for choice in range(_CHOICES[number]) if (number, choice) not in self.forbidden]

    def allowed(self, number: int) -> list[int]:
        return [choice for choice in self.right(number) if (number, choice) not in self.crashing]

    def is_right(self, challenger: Challenger) -> bool:
        return challenger not in self.forbidden

    def time(self, setting: Setting) -> float | None:
        """One noisy run, in seconds; None where it crashes."""
        self.runs += 1
        if any((n, c) in self.crashing for n, c in enumerate(setting)):
            return None
        drift = self._drift * math.sin(2 * math.pi * self.runs / 75 + self._phase)
        disturbed = self._random.uniform(1.1, 1.6) if self._random.random() < _DISTURBED else 1.0
        return math.exp(drift + self._random.normal(0, _NOISE)) * disturbed / self.gain(setting)


def gaining_board(seed: int) -> SimulatedBoard:
    """The first of a few drawn boards on which the best settings are at least LEAST_GAIN times as fast."""
    draws = (SimulatedBoard(seed + 100_000 * n) for n in itertools.count())
    return next(board for board in draws if board.best_gain >= LEAST_GAIN)


def run_race(board: SimulatedBoard, most_runs: Sequence[int]) -> dict[int, Setting]:
    """The settings that would be kept after so many runs. Quality checks are not counted, as for the other two, which
    are not shown forbidden choices at all."""
    race, settings, rounds = Race(board.variables), {}, 0
    for limit in most_runs:
        while (step := race.ask()) is not None:
            if isinstance(step, Check):
                race.tell(step, board.is_right(step.challenger))
                continue
            if board.runs + len(step.settings) > limit:
                break
            times = _in_turn(board, step.settings, backwards=bool(rounds % 2))
            rounds += 1
            if times[0] is not None:
                race.tell(step, times)
        settings[limit] = race.best()
    return settings


def _in_turn(board: SimulatedBoard, settings: Sequence[Setting], *, backwards: bool) -> list[float | None]:
    """One round; every other one runs backwards, as in a tune."""
    order = reversed(settings) if backwards else settings
    times = [board.time(setting) for setting in order]
    return times[::-1] if backwards else times


def run_random(board: SimulatedBoard, most_runs: Sequence[int], seed: int) -> dict[int, Setting]:
    """Settings at random, the defaults first: the fastest single reading wins. It meets choices that crash."""
    draw = np.random.default_rng([seed, 2])
    readings: list[tuple[float, Setting]] = []
    settings = {}
    for limit in most_runs:
        while board.runs < limit:
            setting = tuple(int(draw.choice(board.right(n))) if board.runs else 0 for n in range(len(_GAINS)))
            readings.append((board.time(setting) or math.inf, setting))
        settings[limit] = min(readings)[1]
    return settings


def run_tpe(optuna: Any, board: SimulatedBoard, most_runs: Sequence[int], seed: int) -> dict[int, Setting]:
    """Optuna's TPE as it comes, the defaults first. It meets choices that crash, as the race does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({str(n): 0 for n in range(len(_GAINS))})
    settings = {}

    def objective(trial: Any) -> float:
        chosen = (trial.suggest_categorical(str(n), board.right(n)) for n in range(len(_GAINS)))
        return board.time(tuple(chosen)) or math.inf

    for limit in most_runs:
        study.optimize(objective, n_trials=limit - board.runs)
        settings[limit] = tuple(study.best_params[str(n)] for n in range(len(_GAINS)))
    return settings


def says_as_good(board: SimulatedBoard, most_runs: int) -> bool:
    """Whether a whole tune, with its fresh rounds, says that the defaults are as good."""
    chosen = run_race(board, [most_runs])[most_runs]
    defaults = (0,) * len(_GAINS)
    rounds = [(board.time(defaults), board.time(chosen)) for _ in range(FINAL_ROUNDS)]
    pairs = [(a, b) for a, b in rounds if a is not None and b is not None]
    return chosen == defaults or not conclude([a for a, _ in pairs], [b for _, b in pairs]).faster

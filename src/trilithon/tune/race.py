"""The race: which settings to measure next, and which are kept. Pure: it is asked for a round, and told its times.

In a round the incumbent and a few challengers run in turn. A challenger differs from the incumbent in one variable;
those of which one more run is worth most come first. The same answers always lead to the same questions, so a tune that
was stopped goes on by answering again from the store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trilithon.engines.variables import Variable
from trilithon.tune.posterior import NEGLIGIBLE_GAIN, Posterior, Weights, pooled_noise

__all__ = ["Challenger", "Check", "Race", "Round", "Setting", "Step"]

Setting = tuple[int, ...]
"""For each variable the number of its choice; 0 is the default."""
Challenger = tuple[int, int]
"""A variable's number, and the number of its choice."""

SURE, PROBABLE = 0.99, NEGLIGIBLE_GAIN / 2
MOST_ROUNDS = 6
"""Rounds of one challenger in one sweep."""
SWEEPS = 2
"""One where an earlier tune on this board says what to expect."""
_BESIDE, _FITS = 3, 5  # rounds on each side for the incumbent's time; each fit weighs what is far from the line less
_CHALLENGERS = 4  # in one round, so that the incumbent's time is not of another moment than theirs
_WORTH_A_RUN = 0.0001  # expected gain in the logarithm of the time; less is not worth another run
_INTERACTION = 0.15  # by how much of a variable's gain another variable's choice may change it


@dataclass(frozen=True, slots=True)
class Round:
    """Settings to measure in turn, the incumbent first, then a setting for each of `challengers`. The answer is a time
    for each, None where it failed."""

    settings: tuple[Setting, ...]
    challengers: tuple[Challenger, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A lossy choice whose answers have to be compared first. The answer is whether they are right."""

    setting: Setting
    challenger: Challenger


Step = Round | Check


@dataclass(slots=True)
class _Contest:
    """What is known of a challenger in one sweep: a prior, and in which rounds it ran."""

    prior: Weights
    rounds: list[int] = field(default_factory=list)
    posterior: Posterior | None = None
    dropped: bool = False
    measured: bool = False


class Race:
    """`ask` gives the next step, None at the end; `tell` takes its answer. `incumbent` is the best so far that is sure:
    it may be used at any moment. `noise` is the deviation of one run's logarithm. `excluded` failed or gave wrong
    answers, and are never asked for again."""

    def __init__(self, variables: Sequence[Variable]):
        self._variables = tuple(variables)
        self.incumbent: Setting = (0,) * len(self._variables)
        self.excluded: set[Challenger] = set()
        self.noise = pooled_noise(())
        every = [(v, c) for v, variable in enumerate(self._variables) for c in range(len(variable.choices))]
        self._checked = {(v, c) for v, c in every if not self._variables[v].choices[c].lossy}
        # Per round the incumbent's time, and the challengers', as logarithms.
        self._references: list[tuple[Setting, float]] = []
        self._times: list[dict[Challenger, float]] = []
        self._sweep, self._moves = 0, 0
        known = any(self._variables[v].choices[c].known for v, c in every)
        self._sweeps = 1 if known else SWEEPS
        self._contests: dict[Challenger, _Contest] = {}
        for v, c in every:
            choice, deviation = self._variables[v].choices[c], self._variables[v].expected_gain
            if c:
                self._contests[v, c] = _Contest(Posterior.prior(choice.expected_gain, deviation, known=choice.known))
        self._update()

    def ask(self) -> Step | None:
        while True:
            worth = {challenger: self._worth(*challenger) for challenger in self._open()}
            chosen = [c for c in sorted(worth, key=worth.__getitem__, reverse=True) if worth[c] >= _WORTH_A_RUN]
            if chosen:
                return self._step(chosen[:_CHALLENGERS])
            if self._sweep + 1 >= self._sweeps or not self._moves:
                return None
            self._begin_sweep()

    def tell(self, step: Step, answer: bool | Sequence[float | None]) -> None:
        """Raises ValueError for a round whose incumbent has no time: it says nothing, and has to be run again."""
        if isinstance(step, Check):
            self._checked.add(step.challenger)
            if not answer:
                self._exclude(step.challenger)
            return
        assert not isinstance(answer, bool)
        reference, *times = answer
        if reference is None:
            raise ValueError("the incumbent was not measured")
        number = len(self._times)
        self._references.append((self.incumbent, math.log(reference)))
        self._times.append({})
        for challenger, seconds in zip(step.challengers, times, strict=True):
            if seconds is None:
                self._exclude(challenger)
            elif challenger in self._contests:
                self._times[number][challenger] = math.log(seconds)
                self._contests[challenger].rounds.append(number)
                self._contests[challenger].measured = True
        self._update()
        self._decide()

    def best(self) -> Setting:
        """The incumbent, with undecided challengers that are probably faster."""
        best = self.incumbent
        for number in range(len(self._variables)):
            choice, posterior = self._leader(number)
            if posterior is not None and posterior.mean >= PROBABLE:
                best = (*best[:number], choice, *best[number + 1 :])
        return best

    def _open(self) -> list[Challenger]:
        return [c for c, contest in self._contests.items() if not contest.dropped and len(contest.rounds) < MOST_ROUNDS]

    def _leader(self, number: int) -> tuple[int, Posterior | None]:
        """The challenger of a variable with the largest gain of those that were measured."""
        measured = {
            choice: contest.posterior
            for (variable, choice), contest in self._contests.items()
            if variable == number and contest.measured and contest.posterior is not None
        }
        choice = max(measured, key=lambda choice: measured[choice].mean, default=0)
        return choice, measured.get(choice)

    def _worth(self, number: int, choice: int) -> float:
        """What another model gained from is run at least once here, however sure it is."""
        contest = self._contests[number, choice]
        posterior = contest.posterior
        others = [
            contest.posterior.mean
            for (variable, other), contest in self._contests.items()
            if variable == number and other != choice and contest.measured and contest.posterior is not None
        ]
        assert posterior is not None
        if self._variables[number].choices[choice].known and not contest.measured and posterior.mean >= PROBABLE:
            return posterior.mean
        return posterior.worth(max([0.0, *others]))

    def _step(self, challengers: Sequence[Challenger]) -> Step:
        for challenger in challengers:
            if challenger not in self._checked:
                return Check(self._with(challenger), challenger)
        return Round((self.incumbent, *map(self._with, challengers)), tuple(challengers))

    def _with(self, challenger: Challenger) -> Setting:
        number, choice = challenger
        return (*self.incumbent[:number], choice, *self.incumbent[number + 1 :])

    def _exclude(self, challenger: Challenger) -> None:
        self.excluded.add(challenger)
        self._contests.pop(challenger, None)

    def _pairs(self, challenger: Challenger) -> list[float]:
        return [self._reference(n) - self._times[n][challenger] for n in self._contests[challenger].rounds]

    def _reference(self, number: int) -> float:
        """The incumbent's time in a round, from the rounds beside it with the same incumbent: a line through them, to
        which a disturbed run counts little. Drift is followed, and noise is that of several runs."""
        setting, _ = self._references[number]
        near = range(max(number - _BESIDE, 0), min(number + _BESIDE + 1, len(self._references)))
        points = [(n - number, self._references[n][1]) for n in near if self._references[n][0] == setting]
        offsets, times = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        closeness = (1 - (np.abs(offsets) / (_BESIDE + 1)) ** 3) ** 3
        middle, slope = float(np.median(times)), 0.0
        for _ in range(_FITS):
            off = np.abs(times - middle - slope * offsets) / (1.5 * self.noise)
            weights = closeness / np.maximum(off, 1) ** 2
            x, y = (float(weights @ values) / float(weights.sum()) for values in (offsets, times))
            spread = float(weights @ (offsets - x) ** 2)
            slope = float(weights @ ((offsets - x) * (times - y))) / spread if len(points) > 3 else 0.0
            middle = y - slope * x
        return middle

    def _update(self) -> None:
        pairs = {challenger: self._pairs(challenger) for challenger in self._contests}
        self.noise = pooled_noise(list(pairs.values()))
        for challenger, contest in self._contests.items():
            contest.posterior = Posterior(contest.prior, pairs[challenger], self.noise)

    def _decide(self) -> None:
        """Drops challengers that are surely no gain, and moves to the leader of a variable where that is decided."""
        for number in range(len(self._variables)):
            choice, leader = self._leader(number)
            if leader is None:
                continue
            others = []
            for (variable, other), contest in self._contests.items():
                assert contest.posterior is not None
                if variable == number and contest.posterior.above(max(leader.mean, NEGLIGIBLE_GAIN)) < 1 - SURE:
                    contest.dropped |= other != choice or leader.above(NEGLIGIBLE_GAIN) < 1 - SURE
                if variable == number and other != choice and not contest.dropped:
                    others.append(len(contest.rounds))
            if leader.above(NEGLIGIBLE_GAIN) >= SURE and all(rounds >= MOST_ROUNDS for rounds in others):
                self._move(number, choice)

    def _move(self, number: int, choice: int) -> None:
        """The others' gains stay as they are known; in the second sweep they are tested against this incumbent."""
        self.incumbent = self._with((number, choice))
        self._moves += 1
        for challenger in [c for c in self._contests if c[0] == number]:
            del self._contests[challenger]

    def _begin_sweep(self) -> None:
        self._sweep += 1
        for number, variable in enumerate(self._variables):
            deviation = _INTERACTION * variable.expected_gain
            for choice in range(len(variable.choices)):
                challenger = (number, choice)
                if choice == self.incumbent[number] or challenger in self.excluded:
                    continue
                old = self._contests.get(challenger)
                known = old.posterior if old is not None else None
                prior = Posterior.prior(0.0, deviation) if known is None else known.widened(deviation)
                self._contests[challenger] = _Contest(prior, measured=old is not None and old.measured)
        self._update()

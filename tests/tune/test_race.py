"""The race against boards whose true times are known."""

import math
import random
import statistics
from collections.abc import Callable

import pytest

from trilithon.engines.variables import Choice, Variable
from trilithon.tune.conclusion import FINAL_ROUNDS, conclude
from trilithon.tune.race import Check, Race, Round, Setting, Step


def variable(name: str, count: int, *, lossy: bool = False) -> Variable:
    choices = tuple(Choice(options={name: str(n)} if n else {}, lossy=lossy and n > 0) for n in range(count))
    return Variable(name=name, choices=choices, expected_gain=0.3)


VARIABLES = (variable("t", 3), variable("ub", 2), variable("kv", 2, lossy=True))
GAINS = ((0.0, 0.4, -0.3), (0.0, 0.15), (0.0, 0.5))


def seconds(setting: Setting, noise: random.Random) -> float:
    disturbed = 1.4 if noise.random() < 0.06 else 1.0
    gain = sum(gains[choice] for gains, choice in zip(GAINS, setting, strict=True))
    return math.exp(noise.gauss(-gain, 0.03)) * disturbed


def play(race: Race, answer: Callable[[Step], bool | list[float | None]], most: int = 60) -> list[Step]:
    steps: list[Step] = []
    while (step := race.ask()) is not None and len(steps) < most:
        steps.append(step)
        race.tell(step, answer(step))
    return steps


def honest(seed: int, *, lossy_is_right: bool) -> Callable[[Step], bool | list[float | None]]:
    noise = random.Random(seed)
    return lambda step: (
        lossy_is_right if isinstance(step, Check) else [seconds(setting, noise) for setting in step.settings]
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_fastest_choice_of_each_variable_is_kept(seed: int) -> None:
    race = Race(VARIABLES)
    play(race, honest(seed, lossy_is_right=True))
    assert race.best() == (1, 1, 1)
    assert 0.015 < race.noise < 0.08


@pytest.mark.parametrize("seed", range(5))
def test_a_lossy_choice_is_checked_before_its_first_run_and_never_run_when_it_is_wrong(seed: int) -> None:
    race = Race(VARIABLES)
    steps = play(race, honest(seed, lossy_is_right=False))
    assert [step.challenger for step in steps if isinstance(step, Check)] == [(2, 1)]
    assert not any(setting[2] for step in steps if isinstance(step, Round) for setting in step.settings)
    assert race.best()[2] == 0


def test_a_choice_that_fails_costs_itself_alone() -> None:
    noise, race = random.Random(1), Race(VARIABLES)

    def answer(step: Step) -> bool | list[float | None]:
        if isinstance(step, Check):
            return True
        return [None if setting[0] == 1 else seconds(setting, noise) for setting in step.settings]

    steps = play(race, answer)
    assert sum(setting[0] == 1 for step in steps if isinstance(step, Round) for setting in step.settings) == 1
    assert race.best() == (0, 1, 1)


def test_the_same_answers_lead_to_the_same_questions() -> None:
    """A tune that was stopped goes on by answering again from the store."""
    assert play(Race(VARIABLES), honest(3, lossy_is_right=True)) == play(
        Race(VARIABLES), honest(3, lossy_is_right=True)
    )


def test_a_round_without_the_incumbent_is_no_answer() -> None:
    race = Race(VARIABLES[:1])
    step = race.ask()
    assert isinstance(step, Round)
    with pytest.raises(ValueError, match="incumbent"):
        race.tell(step, [None, 1.0, 1.0])
    assert race.ask() == step


def test_a_race_ends_where_nothing_is_to_be_gained() -> None:
    noise, race = random.Random(2), Race(VARIABLES)
    steps = play(
        race, lambda step: isinstance(step, Check) or [noise.lognormvariate(0, 0.02) for _ in step.settings], most=200
    )
    assert len(steps) < 60
    assert race.incumbent == (0, 0, 0)


def test_the_time_beside_a_challenger_follows_drift_and_is_that_of_several_rounds() -> None:
    """Of 4% noise and a drift of 1% per round, as on a board that warms up; one run is disturbed."""
    errors = []
    for seed in range(100):
        noise, race = random.Random(seed), Race(VARIABLES[:1])
        race._references = [((0,), 0.01 * number + noise.gauss(0, 0.04)) for number in range(7)]
        setting, time = race._references[5]
        race._references[5] = setting, time + 0.4
        errors.append(race._reference(3) - 0.03)
    assert abs(statistics.fmean(errors)) < 0.015
    assert statistics.pstdev(errors) < 0.024  # the median of three has 0.028


def test_only_a_sure_difference_of_fresh_rounds_is_told() -> None:
    noise = random.Random(4)

    def rounds(gain: float) -> list[float]:
        return [noise.lognormvariate(-gain, 0.02) for _ in range(FINAL_ROUNDS)]

    faster = conclude(rounds(0), rounds(0.3))
    assert faster.faster
    assert faster.low < math.exp(0.3) < faster.high
    assert not conclude(rounds(0), rounds(0)).faster
    assert not conclude(rounds(0), rounds(-0.3)).faster
    with pytest.raises(ValueError, match="3 rounds"):
        conclude([1.0, 1.0], [1.0, 1.0])

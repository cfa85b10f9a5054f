"""Speeds from fitted effects, with intervals. Plain arithmetic: a command that estimates does not load numpy."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from trilithon.estimate.priors import prior_deviation
from trilithon.estimate.terms import Case, Effects, Term, decode_terms, prefill_terms

__all__ = ["PHASES", "Fitted", "Phase", "Prediction", "Shift", "fitted", "group_of", "predict", "terms_for"]

Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = ("decode", "prefill")
Shift = Mapping[tuple[str, Phase], float]
"""Engine and phase → the logarithm of measured over estimated seconds, on this machine."""
_LEVELS = ("80", "95")
# The scale of an error when all effects are known: intervals are multiples of it, so its value cancels.
_KNOWN = 0.1
# Of the deviation of an effect that was not measured; intervals are about three scales wide.
_UNKNOWN_SHARE = 0.3
# The logarithm of the widest interval's factor: beyond that nothing is known.
_WIDEST = 4.0
# Effects that belong to a publication and not to the machine; a stranger does not have them.
PERSONAL = ("source/", "author/")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Effects by name, and per group the multiples of the scale that hold 80% and 95% of new models."""

    effects: Mapping[str, float]
    multiples: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """`seconds` of one token (decode) or the whole prompt; `within` are the factors of the two intervals: the truth
    lies between seconds / factor and seconds × factor."""

    seconds: float
    within: tuple[float, float]


@cache
def fitted() -> Mapping[Phase, Fitted]:
    """What scripts/fit_estimates.py made of the atlas."""
    table = json.loads(Path(__file__).with_name("fitted.json").read_text(encoding="utf-8"))
    return {
        phase: Fitted(
            table[phase]["effects"], {group: (low, high) for group, (low, high) in table[phase]["multiples"].items()}
        )
        for phase in PHASES
    }


def terms_for(phase: Phase, case: Case) -> tuple[list[Term], Effects]:
    return decode_terms(case) if phase == "decode" else prefill_terms(case)


def group_of(phase: Phase, case: Case) -> str:
    """The cases that share the size of their errors."""
    family = case.family.name
    if case.family.decode == "cpu" and phase == "decode":
        family = "cpu"
    family = {"ik-cpu": "cpu"}.get(family, family)
    if family == "gpu":
        family = "gpu board" if case.machine.isalnum() else "gpu card"
    if family == "cpu":
        family = "cpu board" if case.machine.isalnum() else "cpu other"
    user = " user" if any(name.startswith("user/") for name in case.shared) else ""
    return f"{family}{user}"


def predict(phase: Phase, case: Case, model: Fitted, shift: float | None = None) -> Prediction:
    """`shift` is the logarithm by which the user's own measurements differ: with these, what is not known of the
    machine no longer widens the intervals."""
    logarithm, scale = log_seconds(*terms_for(phase, case), model.effects)
    widest = max(model.multiples.values(), key=lambda pair: pair[1])
    multiples = model.multiples.get(group_of(phase, case), widest)
    reach = _KNOWN if shift is not None else scale
    low, high = (math.exp(min(multiple * reach, _WIDEST)) for multiple in multiples)
    return Prediction(seconds=math.exp(logarithm + (shift or 0.0)), within=(low, high))


def log_seconds(terms: list[Term], whole: Effects, effects: Mapping[str, float]) -> tuple[float, float]:
    """The logarithm of the sum, and the scale of its error: larger where effects have not been measured."""
    parts = [math.log(term.seconds) + _sum(term.effects, effects) for term in terms]
    top = max(parts)
    shares = [math.exp(part - top) for part in parts]
    total = sum(shares)
    unknown: dict[str, float] = dict.fromkeys((name for name in whole if name not in effects), 1.0)
    for share, term in zip(shares, terms, strict=True):
        for name, value in term.effects.items():
            if name not in effects:
                unknown[name] = unknown.get(name, 0.0) + share / total * value
    variance = sum(
        (weight * prior_deviation(name)) ** 2 for name, weight in unknown.items() if not name.startswith(PERSONAL)
    )
    return top + math.log(total) + _sum(whole, effects), math.sqrt(_KNOWN**2 + _UNKNOWN_SHARE**2 * variance)


def _sum(wanted: Effects, effects: Mapping[str, float]) -> float:
    return sum(
        value * effects[name] for name, value in wanted.items() if name in effects and not name.startswith(PERSONAL)
    )

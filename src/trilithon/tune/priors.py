"""What earlier tunes on this board say of a variable's choices, before anything is measured for this model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trilithon.engines.variables import Variable
from trilithon.results.store.database import Store
from trilithon.results.tuned.steps import TUNE_SOURCE, changed_half, end_of, steps, units_of
from trilithon.tune.handovers import Knob

__all__ = ["Gains", "known_gains", "with_priors"]

Gains = Mapping[tuple[str, bool, str], float]
"""The logarithm of a change's gain, by engines and units, whether of a handover's prefilling half, and its text."""


def known_gains(store: Store, campaign: int, board: str) -> Gains:
    """Those of the last tune of the same workload before `campaign` that ended on a board of this description. A tune
    that goes on gets what it got at its start."""
    plan = store.campaign(campaign).plan
    earlier = [one for one in store.campaigns() if one.source == TUNE_SOURCE and one.id < campaign and not one.imported]
    for one in reversed(earlier):
        stored = store.campaign(one.id)
        is_same = all(stored.plan.get(name) == plan[name] for name in ("prompt_tokens", "generated_tokens"))
        if is_same and end_of(stored) is not None and stored.board.get("description") == board:
            gained = [(step, step.gain) for step in steps(stored) if step.gain is not None]
            return {(*changed_half(step), step.change): math.log(gain) for step, gain in gained}
    return {}


def with_priors(knobs: Sequence[Knob], placement: str, gains: Gains) -> list[Variable]:
    """A choice that was tried then is expected to gain as much now, within the deviation of another model."""
    units = units_of(placement)
    return [
        replace(
            knob.variable,
            choices=tuple(
                replace(choice, expected_gain=gains[key], known=True)
                if (key := (units, knob.of_prefill, choice.text.replace(",", ", "))) in gains
                else choice
                for choice in knob.variable.choices
            ),
        )
        for knob in knobs
    ]

"""What earlier tunes on this board say of a variable's choices, before anything is measured for this model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trilithon.engines.variables import Variable
from trilithon.results.store.database import Store
from trilithon.results.tuned.steps import TUNE_SOURCE, end_of, steps

__all__ = ["known_gains", "with_priors"]


def known_gains(store: Store, campaign: int, board: str) -> Mapping[str, float]:
    """By the text of a change, the logarithm of its gain in the last tune before `campaign` that ended on a board of
    this description. A tune that goes on gets what it got at its start."""
    earlier = [one for one in store.campaigns() if one.source == TUNE_SOURCE and one.id < campaign and not one.imported]
    for one in reversed(earlier):
        stored = store.campaign(one.id)
        if end_of(stored) is not None and stored.board.get("description") == board:
            return {step.change: math.log(step.gain) for step in steps(stored) if step.gain is not None}
    return {}


def with_priors(variables: Sequence[Variable], gains: Mapping[str, float]) -> list[Variable]:
    """A choice that was tried then is expected to gain as much now, within the deviation of another model."""
    return [
        replace(
            variable,
            choices=tuple(
                replace(choice, expected_gain=gains[name], known=True)
                if (name := choice.text.replace(",", ", ")) in gains
                else choice
                for choice in variable.choices
            ),
        )
        for variable in variables
    ]

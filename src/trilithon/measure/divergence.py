"""The difference between two next-token distributions of which only the most probable tokens are known."""

import math
from collections.abc import Mapping

__all__ = ["SAME_DIVERGENCE", "agreement", "kl_divergence", "surprise"]

# Nats per token. Up to this, two placements of one model are called the same (docs/methodology.md).
SAME_DIVERGENCE = 0.03

# The probability of all tokens outside a list is never taken as less than this.
_MIN_MASS = 1e-10


def kl_divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference ‖ other) in nats, from each side's most probable tokens: token id → natural log-probability.

    It is a lower bound of the true divergence, and tight when the lists have most of the mass. `other` must list as
    many tokens as `reference`. A token that only `reference` lists has in `other` at most the smallest listed
    probability, and all of them together at most the mass outside the list. Each gives a bound (the second one with the
    unlisted tokens as one event, by the data-processing inequality); the larger one is returned."""
    shared = reference.keys() & other.keys()
    listed = math.fsum(math.exp(reference[token]) * (reference[token] - other[token]) for token in shared)
    missing = [math.exp(logprob) for token, logprob in reference.items() if token not in other]
    missing_mass = math.fsum(missing)
    rest = max(1 - math.fsum(map(math.exp, reference.values())), 0.0)
    other_rest = max(1 - math.fsum(math.exp(other[token]) for token in shared), _MIN_MASS)
    left_over = max(1 - math.fsum(map(math.exp, other.values())), _MIN_MASS)
    least = math.exp(min(other.values()))

    one_by_one = math.fsum(_term(mass, least) for mass in missing) + _term(rest, other_rest - len(missing) * least)
    taken = min(left_over, len(missing) * least)
    together = _term(missing_mass, taken) + _term(rest, other_rest - taken)
    return max(listed + max(one_by_one, together), 0.0)


def _term(mass: float, other: float) -> float:
    return mass * math.log(mass / max(other, _MIN_MASS)) if mass > _MIN_MASS else 0.0


def agreement(reference: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether the most probable token is the same."""
    return max(reference, key=reference.__getitem__) == max(other, key=other.__getitem__)


def surprise(distribution: Mapping[int, float], token: int) -> float:
    """The negative log-probability of `token` in nats; for an unlisted token, that of the least probable one."""
    return -distribution.get(token, min(distribution.values()))

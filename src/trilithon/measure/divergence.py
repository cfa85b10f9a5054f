"""How far one next-token distribution is from another, when only its most probable tokens are known."""

import math
from collections.abc import Mapping

__all__ = ["SAME_DIVERGENCE", "agreement", "kl_divergence", "surprise"]

# Nats per token up to which two ways to run one model count as the same; docs/methodology.md says why.
SAME_DIVERGENCE = 0.03

# Tokens outside both lists share what is left; it must not be taken for nothing.
_LEAST = 1e-10


def kl_divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference ‖ other) in nats, from the natural log-probabilities of each side's most probable tokens.

    A lower bound of the true divergence, tight when the lists hold most of the mass; `other` must list as many tokens
    as `reference`. Of what only `reference` lists, `other` gives each token at most the least that it lists, and all
    of them at most what its list leaves over: each makes a bound (the second, and what neither lists, as one lump by
    the data-processing inequality), and the larger one counts.
    """
    shared = reference.keys() & other.keys()
    listed = math.fsum(math.exp(reference[token]) * (reference[token] - other[token]) for token in shared)
    missing = [math.exp(logprob) for token, logprob in reference.items() if token not in other]
    missing_mass = math.fsum(missing)
    rest = max(1 - math.fsum(map(math.exp, reference.values())), 0.0)
    room = max(1 - math.fsum(math.exp(other[token]) for token in shared), _LEAST)
    left_over = max(1 - math.fsum(map(math.exp, other.values())), _LEAST)
    least = math.exp(min(other.values()))

    one_by_one = math.fsum(_term(mass, least) for mass in missing) + _term(rest, room - len(missing) * least)
    # The lump is at its nearest when it has its share of the room.
    share = room * missing_mass / max(missing_mass + rest, _LEAST)
    taken = min(left_over, len(missing) * least, share)
    together = _term(missing_mass, taken) + _term(rest, room - taken)
    return max(listed + max(one_by_one, together), 0.0)


def _term(mass: float, other: float) -> float:
    return mass * math.log(mass / max(other, _LEAST)) if mass > _LEAST else 0.0


def agreement(reference: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether both hold the same token for the most probable."""
    return max(reference, key=reference.__getitem__) == max(other, key=other.__getitem__)


def surprise(distribution: Mapping[int, float], token: int) -> float:
    """Negative log-probability of `token` in nats; of a token that is not listed: of the least listed one."""
    return -distribution.get(token, min(distribution.values()))

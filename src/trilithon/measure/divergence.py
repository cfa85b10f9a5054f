"""How far one next-token distribution is from another, when only its most probable tokens are known."""

import math
from collections.abc import Mapping

__all__ = ["agreement", "kl_divergence", "surprise"]

# Tokens outside both lists share what is left; it must not be taken for nothing.
_LEAST = 1e-10


def kl_divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference ‖ other) in nats, from the natural log-probabilities of each side's most probable tokens.

    A token that only the reference lists is at most as probable for `other` as the least that it lists, so that
    bound stands in for it; what neither lists is compared as one lump. Both make the figure a lower bound of the
    true divergence (for the lump: the data-processing inequality), tight when the lists hold most of the mass.
    """
    least = min(other.values())
    total = math.fsum(math.exp(logprob) * (logprob - other.get(token, least)) for token, logprob in reference.items())
    rest = max(1 - math.fsum(map(math.exp, reference.values())), 0.0)
    other_rest = max(1 - math.fsum(math.exp(other.get(token, least)) for token in reference), _LEAST)
    if rest > _LEAST:
        total += rest * math.log(rest / other_rest)
    return max(total, 0.0)


def agreement(reference: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether both hold the same token for the most probable."""
    return max(reference, key=reference.__getitem__) == max(other, key=other.__getitem__)


def surprise(distribution: Mapping[int, float], token: int) -> float:
    """Negative log-probability of `token` in nats; of a token that is not listed: of the least listed one."""
    return -distribution.get(token, min(distribution.values()))

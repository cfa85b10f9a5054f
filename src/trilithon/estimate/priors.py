"""How far things of a kind are from each other before they have been measured: the deviations of the priors."""

from collections.abc import Mapping
from functools import cache

from trilithon.tables import table_beside

__all__ = ["prior_deviation"]

_PRIORS: Mapping[str, float] = table_beside(__file__, "priors.toml")["deviations"]


@cache
def prior_deviation(effect: str) -> float:
    """By the longest prefix in priors.toml; "prefix/*2" there is for names with two further parts. Raises KeyError."""
    parts = effect.split("/")
    for count in range(len(parts), 0, -1):
        prefix = "/".join(parts[:count])
        for name in (f"{prefix}/*{len(parts) - count}", prefix):
            if name in _PRIORS:
                return _PRIORS[name]
    raise KeyError(effect)

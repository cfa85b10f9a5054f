"""Fields of a request that choose the next token, read for the servers that are written in Python."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trilithon.engines.wire.bodies import NUMBER_LIMIT, field_of
from trilithon.engines.wire.http import WireError

__all__ = ["NEUTRAL", "RANDOM_SEEDS", "UNSUPPORTED", "biases", "refuse_unknown", "within"]

UNSUPPORTED: Final = "not_supported_error"
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("dry_multiplier", "dynatemp_range", "n_indent", "xtc_probability"), (0,)),
    **dict.fromkeys(("n", "tfs_z", "typ_p", "typical_p"), (1,)),
    **dict.fromkeys(("image_data", "lora", "response_fields", "samplers"), ([],)),
    **dict.fromkeys(("grammar", "suffix"), ("",)),
    "best_of": (0, 1),
    "echo": (False,),
    "json_schema": ({},),
    "response_format": ({"type": "text"},),
    "t_max_predict_ms": (0, -1),
    "tool_choice": ("auto", "none"),
    "top_n_sigma": (-1,),
}
"""Fields that none of these servers supports, with the values that have no effect."""
RANDOM_SEEDS: Final = (-1, 2**32 - 1)
"""Seeds that ask for another answer each time."""
_MOST_DIGITS = 11


def refuse_unknown(body: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], engine: str) -> None:
    """Raises WireError for a field of `neutral` that has another value than the ones without effect there: some clients
    send these every time. `engine` is for the message."""
    for name, values in neutral.items():
        if body.get(name) is not None and body[name] not in values:
            raise WireError(400, f'"{name}" is not supported by {engine}; leave it out', UNSUPPORTED)


def within(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """Raises WireError for a number outside of the bounds."""
    value = field_of(body, name, float, float(default))
    if not low <= value <= high:
        raise WireError(400, f'"{name}" must be from {low:g} to {high:g}')
    return value


def biases(body: Mapping[str, Any], token_of: Callable[[str], int | None]) -> dict[int, float]:
    """Of `logit_bias`: llama-server's pairs, or OpenAI's object. A text stands for its token (`token_of`), False for
    never. Raises WireError."""
    given = body.get("logit_bias") or []
    pairs = list(given.items()) if isinstance(given, dict) else given
    bias = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], int | float):
            raise WireError(400, '"logit_bias" must be a list of pairs of a token and a number')
        named = str(pair[0])
        token = int(named) if named.isdecimal() and len(named) < _MOST_DIGITS else token_of(named)
        if token is None:
            raise WireError(400, f'"logit_bias" names {named[:99]!r}, which is no token of this model')
        if not abs(pair[1]) <= NUMBER_LIMIT:
            raise WireError(400, f'"logit_bias" must have numbers up to {NUMBER_LIMIT:g}')
        bias[token] = -NUMBER_LIMIT if pair[1] is False else float(pair[1])
    return bias

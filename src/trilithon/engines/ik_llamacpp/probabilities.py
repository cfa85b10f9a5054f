"""ik_llama.cpp's probabilities put right.

Its server divides by a sum in which every token behind the `n_probs` most probable ones is counted twice
(get_token_probabilities in examples/server/server-common.cpp, ik-llama-cpp-python 0.1.5). With the true mass h of the
head it states h' = h / (2 - h) for the head and p' = p / (2 - h) for each token, so that h = 2h' / (1 + h') and
p = p'(2 - h)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["entries_of", "set_right"]


def set_right(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`entries` of OpenAI's `logprobs.content`, with the logarithms of the true probabilities."""
    return [_entry_set_right(entry) for entry in entries]


def _entry_set_right(entry: Mapping[str, Any]) -> dict[str, Any]:
    top = entry.get("top_logprobs")
    if not top:  # probabilities after sampling have another name, and are right
        return dict(entry)
    stated = min(math.fsum(math.exp(candidate["logprob"]) for candidate in top), 1.0)
    shift = math.log(2 - 2 * stated / (1 + stated))
    shifted = [candidate | {"logprob": min(candidate["logprob"] + shift, 0.0)} for candidate in top]
    return {**entry, "logprob": min(entry["logprob"] + shift, 0.0), "top_logprobs": shifted}


def entries_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries in an answer of `/v1/completions`. Raises LookupError, TypeError for another form."""
    return [entry for choice in answer["choices"] for entry in (choice.get("logprobs") or {}).get("content") or ()]

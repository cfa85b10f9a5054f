"""ik_llama.cpp's probabilities put right.

Its server divides by a sum in which every token behind the `n_probs` most probable ones is counted twice
(get_token_probabilities in examples/server/server-common.cpp, ik-llama-cpp-python 0.1.5). With the true mass h of the
head it states h' = h / (2 - h) for the head and p' = p / (2 - h) for each token, so that h = 2h' / (1 + h') and
p = p'(2 - h)."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trilithon.engines.wire.dialect import Ask

__all__ = ["PLAIN_TEXT", "counts_the_tail_twice", "entries_of", "set_right"]

PLAIN_TEXT = "root ::= [ -~]+"
"""A grammar of any text of printable ASCII."""

_FEW, _MANY = 1, 64
_EQUAL = 1e-3  # of a probability: the true one does not depend on how many are asked for
_CERTAIN = 0.9  # where nearly all the mass is on one token, both ways of counting give nearly the same
# Short beginnings after which a language model is not certain.
_PROMPTS = ("The", "A", "1", "\n")


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


async def counts_the_tail_twice(ask: Ask) -> bool:
    """Whether this build needs `set_right`: then the probability of the first choice depends on how many are listed.

    Where the model is certain after every prompt, both are the same, and True is the answer for the known versions.
    Raises RunError."""
    for prompt in _PROMPTS:
        few, many = [await _first_choice(ask, prompt, count) for count in (_FEW, _MANY)]
        if few is not None and many is not None and min(few, many) < _CERTAIN:
            return abs(few - many) > _EQUAL * max(few, many)
    return True


async def _first_choice(ask: Ask, prompt: str, count: int) -> float | None:
    """The stated probability of the most probable token, of a list of `count`; None where the server lists none."""
    # As events: in a whole answer, a listed token that is no text of its own makes the server fail.
    body = {"prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": 0, "cache_prompt": False, "stream": True}
    body |= {"logit_bias": []}
    content = await ask("/v1/completions", body | {"grammar": PLAIN_TEXT})
    events = [line.removeprefix(b"data: ") for line in content.splitlines() if line.startswith(b"data: {")]
    entries = [entry for event in events for entry in entries_of(json.loads(event))]
    top = [candidate["logprob"] for entry in entries for candidate in entry.get("top_logprobs") or ()]
    return math.exp(max(top)) if top else None

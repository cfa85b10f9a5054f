"""Faults of ik_llama.cpp's server that a build is asked about before its first answer: later builds may be without.

All are those of ik-llama-cpp-python 0.1.5."""

import json
import math
from collections.abc import Mapping
from typing import Any

from trilithon.engines.ik_llamacpp.probabilities import entries_of
from trilithon.engines.wire.dialect import Ask

__all__ = ["PLAIN_TEXT", "claims_unread_token", "counts_the_tail_twice"]

PLAIN_TEXT = "root ::= [ -~]+"
"""A grammar of any text of printable ASCII."""

_FEW, _MANY = 1, 64
_EQUAL = 1e-3  # of a probability: the true one does not depend on how many are asked for
_CERTAIN = 0.9  # where nearly all the mass is on one token, both ways of counting give nearly the same
# Short beginnings after which a language model is not certain.
_PROMPTS = ("The", "A", "1", "\n")
# Any tokens do: their numbers are small, so that every vocabulary has them.
_TOKENS, _NEXT_TOKEN = [20, 21, 22, 23, 24, 25], 26


async def counts_the_tail_twice(ask: Ask) -> bool:
    """Whether this build needs `set_right`: then the probability of the first choice depends on how many are listed.

    Where the model is certain after every prompt, both are the same, and True is the answer for the known versions.
    Raises RunError."""
    for prompt in _PROMPTS:
        few, many = [_first_choice(await _events(ask, prompt, n_probs=count)) for count in (_FEW, _MANY)]
        if few is not None and many is not None and min(few, many) < _CERTAIN:
            return abs(few - many) > _EQUAL * max(few, many)
    return True


async def claims_unread_token(ask: Ask) -> bool:
    """Whether the server takes the last token of an answer for one that is in the KV cache, where it was only chosen
    and never evaluated (server-context.cpp, at the end of an answer). A prompt that goes on with it, as the next turn
    of a conversation does, is then answered as if the token were not there.

    Such a build evaluates one token of a prompt that is two tokens longer than the one before. Raises RunError."""
    before = await _events(ask, _TOKENS, n_probs=1)
    chosen = next((entry["id"] for event in before for entry in entries_of(event)), None)
    if chosen is None:
        return True
    after = await _events(ask, [*_TOKENS, chosen, _NEXT_TOKEN], cache_prompt=True)
    evaluated = [int(event["timings"]["prompt_n"]) for event in after if event.get("timings")]
    return evaluated != [2]


async def _events(ask: Ask, prompt: str | list[int], **more: Any) -> list[Mapping[str, Any]]:
    """As events: in a whole answer, a listed token that is no text of its own makes the server fail."""
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": False, "stream": True, "id_slot": 0}
    content = await ask("/v1/completions", body | {"logit_bias": [], "grammar": PLAIN_TEXT} | more)
    return [json.loads(line[6:]) for line in content.splitlines() if line.startswith(b"data: {")]


def _first_choice(events: list[Mapping[str, Any]]) -> float | None:
    """The stated probability of the most probable token; None where the server lists none."""
    entries = [entry for event in events for entry in entries_of(event)]
    top = [candidate["logprob"] for entry in entries for candidate in entry.get("top_logprobs") or ()]
    return math.exp(max(top)) if top else None

"""Probabilities as ik_llama.cpp's server states them, and as they are."""

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.ik_llamacpp.faults import claims_unread_token, counts_the_tail_twice
from trilithon.engines.ik_llamacpp.probabilities import set_right

LOGITS = st.lists(st.floats(-20, 20), min_size=2, max_size=300)


def stated(logits: list[float], count: int, *, twice: bool) -> dict[str, Any]:
    """What the server says of the first `count` tokens; the token at hand is the last one of the vocabulary."""
    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server-common.cpp: get_token_probabilities
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])[:count]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    total = math.fsum(weights)
    total += (total - math.fsum(weights[token] for token in ranked)) * twice
    top = [{"id": token, "logprob": math.log(weights[token] / total)} for token in ranked]
    return {"id": len(logits) - 1, "logprob": math.log(weights[-1] / total), "top_logprobs": top}


@given(LOGITS, st.integers(1, 300))
def test_the_true_probabilities_follow_from_the_stated_ones(logits: list[float], count: int) -> None:
    right, (corrected,) = stated(logits, count, twice=False), set_right([stated(logits, count, twice=True)])
    assert corrected["id"] == right["id"]
    for before, after in zip(right["top_logprobs"], corrected["top_logprobs"], strict=True):
        assert before["id"] == after["id"]
        assert before["logprob"] == pytest.approx(after["logprob"], abs=1e-6)
    assert right["logprob"] == pytest.approx(corrected["logprob"], abs=1e-6)


def test_what_was_listed_after_sampling_stays() -> None:
    entry = {"id": 5, "prob": 0.5, "top_probs": [{"id": 5, "prob": 0.5}]}
    assert set_right([entry]) == [entry]


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("certain", [0, 3])
def test_a_build_tells_how_it_counts(twice: bool, certain: int) -> None:
    """Also where the model is certain of what follows the first prompts."""
    prompts: list[str] = []

    async def ask(path: str, body: Mapping[str, Any]) -> bytes:
        prompts.append(body["prompt"])
        known = len(set(prompts)) <= certain
        entry = stated([30.0 * known, 1.0, *[0.0] * 50], body["n_probs"], twice=twice)
        event = {"choices": [{"logprobs": {"content": [entry]}}]}
        return f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()

    assert asyncio.run(counts_the_tail_twice(ask)) is twice
    assert len(set(prompts)) == certain + 1


def test_a_build_that_lists_nothing_is_taken_for_the_known_one() -> None:
    async def ask(path: str, body: Mapping[str, Any]) -> bytes:
        return b'data: {"choices": [{"logprobs": null}]}\n\n'

    assert asyncio.run(counts_the_tail_twice(ask)) is True


@pytest.mark.parametrize(("evaluated", "claims"), [(1, True), (2, False), (8, True)])
def test_a_build_tells_whether_it_claims_a_token_that_it_did_not_evaluate(evaluated: int, claims: bool) -> None:
    """One that keeps no prefix at all is not asked to."""
    asked: list[Mapping[str, Any]] = []

    async def ask(path: str, body: Mapping[str, Any]) -> bytes:
        asked.append(body)
        choice = {"logprobs": {"content": [{"id": 7}]}}
        event = {"choices": [choice], "timings": {"prompt_n": evaluated}}
        return f"data: {json.dumps(event)}\n\n".encode()

    assert asyncio.run(claims_unread_token(ask)) is claims
    assert asked[1]["prompt"] == [*asked[0]["prompt"], 7, 26]

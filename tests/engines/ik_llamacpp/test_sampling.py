"""The sampler of the server over the library, against the definition of each step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.ik_llamacpp.child.sampling import IkSampling, TokenSampler, logprobs_of

SCORES = st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=60, unique=True)
SETTINGS = st.builds(
    IkSampling,
    temperature=st.floats(0.01, 5),
    top_k=st.integers(-1, 70),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 1 << 31),
)


def allowed(scores: list[float], sampling: IkSampling) -> set[int]:
    """The tokens that may be chosen, step by step."""
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    order = order[: sampling.top_k] if sampling.top_k > 0 else order
    weights = np.exp(np.array([scores[token] - scores[order[0]] for token in order]))
    shares, total, kept = weights / weights.sum(), 0.0, 0
    while kept < len(order) and (total < sampling.top_p or not kept):
        total += shares[kept]
        kept += 1
    kept = max(1, min(kept, int((weights >= sampling.min_p).sum())))
    return set(order[: kept + 1] if abs(total - sampling.top_p) < 1e-9 else order[:kept])


@given(SCORES, SETTINGS)
def test_only_allowed_tokens_are_chosen(scores: list[float], sampling: IkSampling) -> None:
    logits = np.array(scores, dtype=np.float32)
    token = TokenSampler(sampling, {}, ()).choose(logits, [])
    assert token in allowed([float(score) for score in logits], sampling)
    assert token == TokenSampler(sampling, {}, ()).choose(logits, [])  # by the seed


@given(SCORES)
def test_greedy_biased_and_never(scores: list[float]) -> None:
    logits = np.array(scores, dtype=np.float32)
    best = int(logits.argmax())
    greedy = IkSampling(temperature=0)
    assert TokenSampler(greedy, {}, ()).choose(logits, []) == best
    last = len(scores) - 1
    assert TokenSampler(greedy, {last: 1000.0, len(scores): 5.0}, ()).choose(logits, []) == last
    if len(scores) > 1:
        assert TokenSampler(greedy, {}, (best,)).choose(logits, []) != best
    assert logits.tolist() == np.array(scores, dtype=np.float32).tolist()  # the library's memory is left alone


def test_every_token_has_its_share() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = TokenSampler(IkSampling(temperature=1, top_k=0, top_p=1, min_p=0, seed=1), {}, ())
    counts = np.bincount([sampler.choose(logits, []) for _ in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.05)


def test_penalties_are_llama_servers() -> None:
    """A repeated token's score is divided, or multiplied where it is negative; then both of OpenAI's are taken off."""
    logits = np.array([2.0, 1.9, -1.0, -1.9], dtype=np.float32)
    repeated = IkSampling(temperature=0, repeat_penalty=2)
    assert TokenSampler(repeated, {}, ()).choose(logits, [0]) == 1
    assert TokenSampler(repeated, {}, ()).choose(logits, [0, 1, 1]) == 0  # 1.0 and 0.95
    assert TokenSampler(IkSampling(temperature=0, presence_penalty=0.2), {}, ()).choose(logits, [0]) == 1
    counted = IkSampling(temperature=0, frequency_penalty=0.06)
    assert [TokenSampler(counted, {}, ()).choose(logits, [0] * count) for count in (1, 2)] == [0, 1]
    assert TokenSampler(IkSampling(temperature=0, repeat_penalty=2, last_n=1), {}, ()).choose(logits, [0, 2]) == 0
    assert (
        TokenSampler(IkSampling(temperature=0, repeat_penalty=2, last_n=-1), {}, ()).choose(logits, [0, *[2] * 99]) == 1
    )


@given(SCORES, st.integers(0, 70))
def test_logprobs_are_a_softmax(scores: list[float], most: int) -> None:
    logits = np.array(scores, dtype=np.float32)
    right = logits.astype(np.float64)
    right -= right.max() + np.log(np.exp(right - right.max()).sum())
    own, top = logprobs_of(logits, 0, most)
    assert own == pytest.approx(right[0], abs=1e-4)
    assert len(top) == min(most, len(scores))
    assert [token for token, _ in top] == sorted(range(len(scores)), key=lambda token: -logits[token])[:most]
    assert [logprob for _, logprob in top] == pytest.approx([right[token] for token, _ in top], abs=1e-4)

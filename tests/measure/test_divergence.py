import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trilithon.measure.divergence import agreement, kl_divergence, surprise

WEIGHTS = st.floats(1e-6, 1.0)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Two whole distributions over one vocabulary, and how many of their tokens are listed."""
    size = draw(st.integers(2, 30))
    both = [np.array(draw(st.lists(WEIGHTS, min_size=size, max_size=size))) for _ in range(2)]
    if draw(st.booleans()):  # near to each other, as two builds of one model are
        both[1] = both[0] * (0.5 + both[1])
    return both[0] / both[0].sum(), both[1] / both[1].sum(), draw(st.integers(1, size))


def top(distribution: np.ndarray, count: int) -> dict[int, float]:
    order = np.argsort(-distribution, kind="stable")[:count]
    return {int(token): math.log(distribution[token]) for token in order}


def true_divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


@given(pairs())
def test_a_lower_bound_of_the_true_divergence(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    p, q, count = pair
    assert 0 <= kl_divergence(top(p, count), top(q, count)) <= true_divergence(p, q) + 1e-6


@given(pairs())
def test_exact_where_everything_is_listed(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    p, q, _ = pair
    assert kl_divergence(top(p, len(p)), top(q, len(q))) == pytest.approx(true_divergence(p, q), abs=1e-6)


@given(pairs())
def test_nothing_between_equals(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    p, _, count = pair
    assert kl_divergence(top(p, count), top(p, count)) == pytest.approx(0, abs=1e-8)
    assert agreement(top(p, count), top(p, count))


@given(pairs(), st.floats(0.01, 0.5), st.floats(1.1, 2))
@settings(max_examples=50)
def test_it_grows_with_the_distance(pair: tuple[np.ndarray, np.ndarray, int], part: float, more: float) -> None:
    p, q, _ = pair
    assume(true_divergence(p, q) > 1e-3)
    everything = len(p)
    near, far = (p * (1 - share) + q * share for share in (part, part * more))
    listed = top(p, everything)
    assert kl_divergence(listed, top(near, everything)) < kl_divergence(listed, top(far, everything))


@pytest.mark.parametrize(
    ("ours", "theirs", "divergence"),
    [
        # Of what the other leaves over (0.1), all goes to the missing token: the lump bound counts.
        ({1: 0.6, 2: 0.3}, {1: 0.6, 3: 0.3}, 0.3 * math.log(0.3 / 0.1) + 0.1 * math.log(0.1 / 0.3)),
        # Each missing token has at most the least of the other's list, 0.02: the bound one by one counts.
        (
            {1: 0.5, 2: 0.35, 4: 0.05},
            {1: 0.5, 3: 0.02},
            0.35 * math.log(0.35 / 0.02) + 0.05 * math.log(0.05 / 0.02) + 0.1 * math.log(0.1 / 0.46),
        ),
    ],
)
def test_each_bound_by_hand(ours: dict[int, float], theirs: dict[int, float], divergence: float) -> None:
    both = [{token: math.log(share) for token, share in side.items()} for side in (ours, theirs)]
    assert kl_divergence(*both) == pytest.approx(divergence, abs=1e-9)


def test_lists_that_share_nothing_are_far_apart() -> None:
    ours = dict.fromkeys(range(64), math.log(0.999 / 64))
    theirs = dict.fromkeys(range(64, 128), math.log(0.999 / 64))
    # 0.999 of our mass sits where the other has 0.001 at most.
    assert kl_divergence(ours, theirs) > 0.999 * math.log(999) - 0.01
    assert not agreement(ours, theirs)


def test_the_same_list_with_all_of_its_mass_elsewhere_is_far_too() -> None:
    ours = {token: math.log(0.01) for token in range(10)}
    theirs = {token: math.log(0.0999) for token in range(10)}
    assert kl_divergence(ours, theirs) > 0.9 * math.log(0.9 / 0.001) - 0.3


def test_a_certain_token_against_another_certain_one() -> None:
    ours = {1: math.log(0.99), 2: math.log(0.005), 3: math.log(0.004)}
    theirs = {4: math.log(0.99), 5: math.log(0.005), 6: math.log(0.004)}
    assert kl_divergence(ours, theirs) > 4


def test_probabilities_that_sum_to_a_little_over_one_stay_harmless() -> None:
    """llama-server's log-probabilities are 32-bit floats."""
    ours = {1: math.log(0.7 + 1e-6), 2: math.log(0.3 + 1e-6)}
    assert 0 <= kl_divergence(ours, {1: math.log(0.7), 2: math.log(0.3)}) < 1e-5
    assert 0 <= kl_divergence({1: math.log(0.7), 2: math.log(0.3)}, ours) < 1e-5


def test_agreement_is_about_the_first_place_alone() -> None:
    assert agreement({1: -0.1, 2: -3.0}, {3: -4.0, 1: -0.5})
    assert not agreement({1: -0.1, 2: -3.0}, {2: -0.1, 1: -0.2})


def test_no_mass_at_all_is_taken_as_one_in_ten_billion() -> None:
    assert kl_divergence({1: 0.0}, {2: 0.0}) == pytest.approx(math.log(1e10))


def test_surprise() -> None:
    assert surprise({1: -0.5, 2: -3.0}, 1) == 0.5
    assert surprise({1: -0.5, 2: -3.0}, 9) == 3.0

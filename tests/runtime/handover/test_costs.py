import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.handover.costs import Costs, LinearCost

milliseconds = st.floats(0, 1e6)
counts = st.integers(1, 100_000)


def learned(*pairs: tuple[int, float]) -> LinearCost:
    cost = LinearCost()
    for tokens, ms in pairs:
        cost.learn(tokens, ms)
    return cost


def line(start: float, per_token: float) -> LinearCost:
    return learned(*((tokens, start + per_token * tokens) for tokens in (16, 512, 100)))


@given(start=st.floats(0, 1000), slope=st.floats(0.001, 100), tokens=counts)
def test_a_line_is_found(start: float, slope: float, tokens: int) -> None:
    found = line(start, slope).of(tokens)
    expected = start + slope * tokens
    assert found is not None and abs(found - expected) <= 1e-4 * expected + 1e-4


@given(pairs=st.lists(st.tuples(counts, milliseconds), min_size=1, max_size=30), fewer=counts, more=counts)
def test_more_tokens_never_cost_less(pairs: list[tuple[int, float]], fewer: int, more: int) -> None:
    cost = learned(*pairs)
    less, much = cost.of(min(fewer, more)), cost.of(max(fewer, more))
    assert less is not None and much is not None
    assert 0 <= less <= much * (1 + 1e-9) + 1e-9


def test_what_was_never_measured_is_unknown() -> None:
    assert LinearCost().of(5) is None
    assert LinearCost().of(0) == 0
    assert learned((0, 5.0), (3, -1.0)).of(5) is None


def test_measurements_that_fall_with_the_length_are_a_constant() -> None:
    found = learned((158, 6.0), (3999, 4.0)).of(2)
    assert found is not None and 4 < found < 6


def test_a_unit_that_became_slower_is_noticed() -> None:
    cost = line(0, 1)
    for _ in range(30):
        cost.learn(512, 1024)
    found = cost.of(512)
    assert found is not None and 1000 < found < 1050


def costs(prefiller: LinearCost, decoder: LinearCost, transfer: LinearCost) -> Costs:
    return Costs(prefiller=prefiller, decoder=decoder, transfer=transfer)


def test_the_cheapest_route_is_taken() -> None:
    board = costs(line(20, 1), line(5, 3), line(10, 0.01))
    assert board.cheapest(tokens=1024, cached_by_decoder=0, cached_by_prefiller=0)[0] == "prefiller"
    assert board.cheapest(tokens=10, cached_by_decoder=0, cached_by_prefiller=0)[0] == "decoder"
    # All but ten tokens are with the decoder already.
    assert board.cheapest(tokens=1024, cached_by_decoder=1014, cached_by_prefiller=0)[0] == "decoder"
    # Much is new, and much more is old, which only the decoder has.
    assert board.cheapest(tokens=4096, cached_by_decoder=3072, cached_by_prefiller=0)[0] == "update"
    # The prefiller has nearly as much: a transfer of the rest would cost more than evaluating it again.
    assert board.cheapest(tokens=4096, cached_by_decoder=3072, cached_by_prefiller=3060)[0] == "prefiller"


def test_a_slower_prefiller_is_never_asked() -> None:
    same = costs(line(5, 3), line(5, 3), line(10, 0.01))
    for tokens in (1, 100, 10_000):
        assert same.cheapest(tokens=tokens, cached_by_decoder=0, cached_by_prefiller=0)[0] == "decoder"


def test_the_reason_for_no_handover_states_both_times() -> None:
    board = costs(line(20, 1), line(5, 3), line(10, 0.01))
    reason = "prefill is expected in 35 ms, and in 40 ms with a handover"
    assert board.cheapest(tokens=10, cached_by_decoder=0, cached_by_prefiller=0) == ("decoder", reason)
    cached = ("decoder", "the prompt is in the decoder's cache")
    assert board.cheapest(tokens=10, cached_by_decoder=10, cached_by_prefiller=0) == cached
    first = ("decoder", "prefill on the decoder is measured first")
    assert Costs().cheapest(tokens=9, cached_by_decoder=0, cached_by_prefiller=0) == first


def test_an_unknown_route_is_tried() -> None:
    assert (
        costs(LinearCost(), LinearCost(), LinearCost()).cheapest(tokens=9, cached_by_decoder=0, cached_by_prefiller=0)[
            0
        ]
        == "decoder"
    )
    assert (
        costs(LinearCost(), line(5, 3), LinearCost()).cheapest(tokens=9, cached_by_decoder=0, cached_by_prefiller=0)[0]
        == "prefiller"
    )


@given(
    tokens=st.integers(1, 10_000),
    decoder=st.integers(0, 10_000),
    prefiller=st.integers(0, 10_000),
    slopes=st.tuples(*[st.floats(0.001, 10)] * 3),
)
def test_no_other_route_is_cheaper(tokens: int, decoder: int, prefiller: int, slopes: tuple[float, ...]) -> None:
    cached_by_decoder, cached_by_prefiller = min(decoder, tokens), min(prefiller, tokens)
    over, alone, move = (line(0, slope) for slope in slopes)
    route, _ = costs(over, alone, move).cheapest(
        tokens=tokens, cached_by_decoder=cached_by_decoder, cached_by_prefiller=cached_by_prefiller
    )
    per_over, per_alone, per_move = slopes
    prices = {
        "decoder": per_alone * (tokens - cached_by_decoder),
        "prefiller": per_over * (tokens - cached_by_prefiller) + per_move * tokens,
        "update": per_move * cached_by_decoder + per_over * (tokens - cached_by_decoder) + per_move * tokens,
    }
    assert prices[route] <= min(prices.values()) * (1 + 1e-6) + 1e-6


def test_one_outlier_is_ignored_and_a_second_one_counts() -> None:
    """A restarted engine's first evaluation, or another program's burst, must not exclude a route for ever."""
    cost = line(10, 1)
    cost.learn(100, 5000)
    assert cost.of(100) == line(10, 1).of(100)
    for _ in range(20):
        cost.learn(100, 5000)
    found = cost.of(100)
    assert found is not None and found > 4000


def test_a_change_counts_though_other_lengths_come_between() -> None:
    """Else the cost of short prompts would stay what it was, in a conversation of long and short ones."""
    cost = line(0, 1)
    for tokens in (2, 4000) * 10:
        cost.learn(tokens, 4000)
    found = cost.of(2)
    assert found is not None and found > 2000


def test_a_burst_now_and_then_never_counts() -> None:
    cost = line(10, 1)
    for _ in range(5):
        cost.learn(100, 5000)
        cost.learn(100, 110)
    assert cost.of(100) == pytest.approx(110, rel=1e-6)

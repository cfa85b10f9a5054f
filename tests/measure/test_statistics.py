import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trilithon.measure.statistics import (
    LEAST_RUNS,
    NEGLIGIBLE,
    RUNS_FOR_AN_INTERVAL,
    VERDICT_LEVEL,
    RatioResult,
    _claims_difference,
    _critical_t,
    _critical_u,
    _effect,
    _is_more_sensitive,
    _mann_whitney,
    _median_weights,
    _percentiles,
    _wilcoxon,
    compare,
    interval,
    narrow_enough,
    ratio,
    runs_to_find,
)

positive = st.floats(min_value=0.1, max_value=1e4, allow_nan=False)
runs = st.lists(positive, min_size=LEAST_RUNS, max_size=12)
pairs = st.integers(8, 14).flatmap(
    lambda count: st.tuples(*(st.lists(positive, min_size=count, max_size=count) for _ in range(2)))
)
MIRRORED = {"better": "worse", "worse": "better", "same": "same", "not comparable": "not comparable"}
QUIET = [100.0, 101.0, 99.0, 100.5, 99.5]


def noisy(count: int, *, around: float = 100.0, spread: float = 0.01, seed: int = 1) -> list[float]:
    return [float(value) for value in around * np.random.default_rng(seed).lognormal(0, spread, count)]


def test_interval_of_known_values() -> None:
    found = interval(QUIET)
    assert (found.median, found.low, found.high) == (100.0, 99.0, 101.0)


@pytest.mark.parametrize("count", range(1, RUNS_FOR_AN_INTERVAL))
def test_too_few_values_have_no_interval(count: int) -> None:
    found = interval([4.0] * count)
    assert (found.median, found.low, found.high) == (4.0, None, None)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_interval_is_that_of_every_possible_resample() -> None:
    """Of 5 values there are 5**5 resamples: the interval must cut 2.5% of all their medians at each end."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    medians = np.sort([np.median(resample) for resample in product(values, repeat=5)])
    cut = math.ceil(0.2 / 2 * len(medians)) - 1
    found = interval(values, level=0.8)
    assert (found.low, found.high) == (medians[cut], medians[-1 - cut]) == (2.0, 8.0)


def test_interval_narrows_with_runs() -> None:
    widths = [found.high - found.low for n in (5, 20, 80, 1000) if (found := interval(noisy(n))).low and found.high]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.3


@given(st.lists(positive, min_size=RUNS_FOR_AN_INTERVAL, max_size=40), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_holds_the_median_and_stays_within_the_values(values: list[float], level: float) -> None:
    found = interval(values, level=level)
    assert found.low is not None
    assert found.high is not None
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


@given(runs, runs, st.floats(min_value=0.001, max_value=1000))
@settings(max_examples=25, deadline=None)
def test_ratio_does_not_depend_on_the_unit(a: list[float], b: list[float], factor: float) -> None:
    found, scaled = ratio(a, b), ratio([value * factor for value in a], [value * factor for value in b])
    assert scaled.ratio == pytest.approx(found.ratio)
    assert scaled.low == pytest.approx(found.low)
    assert scaled.high == pytest.approx(found.high)


@given(runs, runs)
@settings(max_examples=25, deadline=None)
def test_swapping_the_sides_mirrors_everything(a: list[float], b: list[float]) -> None:
    one, other = compare(a, b, higher_is_better=True), compare(b, a, higher_is_better=True)
    assert one.answer == MIRRORED[other.answer]
    assert one.ratio is not None
    assert other.ratio is not None
    assert other.ratio.low is not None
    assert one.ratio.high == pytest.approx(1 / other.ratio.low)
    assert one.ratio.p_value == pytest.approx(other.ratio.p_value)
    assert one.ratio.smallest_effect == pytest.approx(other.ratio.smallest_effect, rel=1e-3)


@given(pairs, st.booleans())
@settings(max_examples=25, deadline=None)
def test_swapping_mirrors_pairs_and_the_better_way_turns_the_answer(
    sides: tuple[list[float], list[float]], higher: bool
) -> None:
    a, b = sides
    found = compare(a, b, higher_is_better=higher, paired=True).answer
    assert found == MIRRORED[compare(b, a, higher_is_better=higher, paired=True).answer]
    assert found == MIRRORED[compare(a, b, higher_is_better=not higher, paired=True).answer]


@given(runs, runs)
@settings(max_examples=25, deadline=None)
def test_interval_of_the_ratio_holds_the_ratio(a: list[float], b: list[float]) -> None:
    found = ratio(a, b)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio * (1 + 1e-12)
    assert found.ratio <= found.high * (1 + 1e-12)


@given(positive, st.integers(LEAST_RUNS, 15), st.integers(LEAST_RUNS, 15), st.booleans())
def test_constant_data_is_the_same_as_itself(value: float, count: int, other: int, higher: bool) -> None:
    found = compare([value] * count, [value] * other, higher_is_better=higher)
    assert found.answer == "same"
    assert found.ratio is not None
    assert (found.ratio.ratio, found.ratio.low, found.ratio.high, found.ratio.p_value) == (1, 1, 1, 1)


def test_constant_data_that_differs_is_told_apart() -> None:
    assert compare([100.0] * 5, [120.0] * 5, higher_is_better=True).answer == "worse"


def test_a_clear_difference_is_claimed_in_words() -> None:
    found = compare([value * 1.1 for value in QUIET], QUIET, higher_is_better=True)
    assert (found.answer, found.reason) == ("better", "10.0% more (p = 0.0079)")
    assert found.ratio is not None
    assert found.ratio.ratio == pytest.approx(1.1)
    assert found.ratio.method == "Mann-Whitney"
    assert compare([value * 3 for value in QUIET], QUIET, higher_is_better=False).reason.startswith("3 times as much")


@pytest.mark.parametrize(
    ("left", "right", "words"), [(4, 4, "4 runs on each side; at least 5"), (1, 9, "1 and 9 runs")]
)
def test_too_few_runs_are_not_comparable_however_large_the_difference(left: int, right: int, words: str) -> None:
    found = compare([1000.0 + i for i in range(left)], [1.0 + i / 100 for i in range(right)], higher_is_better=True)
    assert (found.answer, found.ratio) == ("not comparable", None)
    assert found.reason.startswith(words)


def test_fewer_than_the_least_runs_can_never_reach_the_level() -> None:
    """Why LEAST_RUNS is what it is: even sides that stand fully apart do not convince the test with fewer."""
    apart = [ratio([2.0 + i for i in range(n)], [1.0 + i / 100 for i in range(n)]).p_value for n in (4, LEAST_RUNS)]
    assert apart[0] is not None
    assert apart[1] is not None
    assert apart[1] <= 0.01 < apart[0]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_values_that_have_no_ratio(bad: float) -> None:
    found = compare([*QUIET, bad], QUIET, higher_is_better=True)
    assert (found.answer, found.ratio) == ("not comparable", None)
    with pytest.raises(ValueError, match="above 0"):
        ratio([bad], QUIET)


def test_unlike_numbers_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        ratio(QUIET, QUIET[:-1], paired=True)


def test_one_run_each_gives_a_ratio_and_nothing_more() -> None:
    found = ratio([3.0], [2.0])
    assert (found.ratio, found.low, found.high, found.p_value, found.smallest_effect) == (1.5, None, None, None, None)


@pytest.mark.parametrize(
    ("left", "right", "has_interval", "has_effect"),
    [(2, 9, False, False), (3, 3, True, False), (3, 9, True, False), (4, 9, True, False), (5, 5, True, True)],
)
def test_the_side_with_fewer_runs_decides_what_can_be_known(
    left: int, right: int, has_interval: bool, has_effect: bool
) -> None:
    for found in (ratio(noisy(left), noisy(right, seed=2)), ratio(noisy(right), noisy(left, seed=2))):
        assert (found.low is not None, found.high is not None, found.p_value is not None) == (has_interval,) * 3
        assert (found.smallest_effect is not None) == has_effect


def test_no_difference_is_said_with_the_one_that_would_have_been_found() -> None:
    found = compare(noisy(13), noisy(13, seed=2), higher_is_better=True)
    assert found.answer == "same"
    assert found.ratio is not None
    assert found.ratio.smallest_effect is not None
    assert 0.01 < found.ratio.smallest_effect < 0.05
    assert f"{found.ratio.smallest_effect * 100:.1f}%" in found.reason


def test_a_difference_too_small_to_matter_is_the_same() -> None:
    a = noisy(20, spread=0.0005)
    found = compare([value * 1.005 for value in a], noisy(20, spread=0.0005, seed=2), higher_is_better=True)
    assert found.answer == "same"
    assert "below the threshold of 1%" in found.reason
    assert found.ratio is not None
    assert found.ratio.low is not None
    assert found.ratio.low > 1


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [9, 13])
def test_smallest_effect_is_where_the_verdict_turns(count: int, paired: bool) -> None:
    a, b = noisy(count, spread=0.02), noisy(count, spread=0.02, seed=2)
    if paired:
        b = [left * right / 100 for left, right in zip(a, noisy(count, spread=0.005, seed=3), strict=True)]
    found = ratio(a, b, paired=paired)
    assert found.smallest_effect is not None
    level = [value / found.ratio for value in a]

    def answer(effect: float) -> set[str]:
        return {
            compare([value * factor for value in level], b, higher_is_better=True, paired=paired).answer
            for factor in (1 + effect, 1 / (1 + effect))
        }

    assert answer(found.smallest_effect * 1.01) == {"better", "worse"}
    assert answer(found.smallest_effect * 0.99) != {"better", "worse"}
    assert found.smallest_effect >= NEGLIGIBLE


def test_pairs_see_through_common_drift() -> None:
    drift = np.exp(np.linspace(0, 0.3, 13))
    a, b = list(drift * noisy(13)), list(drift * noisy(13, around=105.0, seed=2))
    assert compare(a, b, higher_is_better=False).answer == "same"
    found = compare(a, b, higher_is_better=False, paired=True)
    assert found.answer == "better"
    assert found.ratio is not None
    assert found.ratio.method == "Wilcoxon"
    assert found.ratio.ratio == pytest.approx(1 / 1.05, rel=0.01)


@pytest.mark.parametrize(("count", "method"), [(7, "Mann-Whitney"), (8, "Wilcoxon")])
def test_eight_rounds_are_enough_to_pair_them(count: int, method: str) -> None:
    drift = np.exp(np.linspace(0, 1, count))
    a, b = list(drift * noisy(count)), list(drift * noisy(count, around=105.0, seed=2))
    assert ratio(a, b, paired=True).method == method


def test_disturbed_rounds_without_drift_are_not_paired() -> None:
    a, b = noisy(13), noisy(13, seed=2)
    for number in (2, 7):
        a[number] *= 1.3
        b[number + 1] *= 1.2
    assert ratio(a, b, paired=True).method == "Mann-Whitney"


def test_identical_rounds_are_the_same() -> None:
    assert compare(noisy(13), noisy(13), higher_is_better=True, paired=True).answer == "same"


def test_a_placement_against_itself_and_one_five_percent_slower() -> None:
    """A small copy of benchmarks/verdicts.py, so that a broken rule does not wait for a benchmark."""
    sides = [(noisy(7, seed=seed), noisy(7, seed=seed + 1000)) for seed in range(60)]
    same = [compare(a, b, higher_is_better=True).answer for a, b in sides]
    slower = [compare(a, [value / 1.05 for value in b], higher_is_better=True).answer for a, b in sides]
    assert same.count("same") >= 57
    assert slower.count("better") >= 57


def test_narrow_enough() -> None:
    assert narrow_enough([100.0, 100.1, 100.2, 100.3, 100.4])
    assert not narrow_enough([100.0, 100.1, 100.2, 100.3])
    assert not narrow_enough([100.0, 101.0, 102.0, 103.0, 104.0])
    assert narrow_enough([100.0, 101.0, 102.0, 103.0, 104.0], relative_width=0.05)
    assert narrow_enough([7.0] * 5)
    assert narrow_enough([0.0] * 5)
    assert narrow_enough([7.0] * 4) is False


@pytest.mark.parametrize("count", [3, 4, 5, 8, 13, 30, 101])
def test_the_bootstrap_is_the_binomial_one(count: int) -> None:
    below = np.arange(count + 1) / count
    reached = (stats.binom.sf((count + 1) // 2 - 1, count, below) + stats.binom.sf(count // 2, count, below)) / 2
    assert _median_weights(count) == pytest.approx(np.diff(reached), abs=1e-12)
    assert sum(_median_weights(count)) == pytest.approx(1, abs=1e-12)


def test_scipy_is_not_loaded_beside_a_measurement() -> None:
    """Its 70 MB and its seconds come after the last run, with the verdict."""
    words = "import trilithon.bench.campaign, sys; from trilithon.measure.statistics import narrow_enough, compare; "
    words += "narrow_enough([1.0] * 9); print('scipy' in sys.modules); "
    words += "compare([1.0] * 9, [1.1] * 9, higher_is_better=True); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


# -- the parts, against slow or independent computations


@pytest.mark.parametrize(
    ("level", "ends"), [(0.5, (2.0, 4.0)), (0.49, (4.0, 4.0)), (0.9, (1.0, 8.0)), (0.75, (1.0, 8.0))]
)
def test_percentiles_cut_off_half_of_the_rest_at_each_end(level: float, ends: tuple[float, float]) -> None:
    """A value counts as soon as the weights up to it reach the tail; the order of the values does not matter."""
    values, weights = np.array([8.0, 1.0, 4.0, 2.0]), np.array([0.125, 0.125, 0.625, 0.125])
    assert _percentiles(values, weights, level) == ends


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("count", "other"), [(5, 5), (6, 4), (3, 8)])
def test_the_critical_u_is_the_largest_that_claims_a_difference(count: int, other: int, level: float) -> None:
    """By all orders of the values of both sides, of which `count` are one side's."""
    ranks = [sum(side) - count * (count - 1) // 2 for side in combinations(range(count + other), count)]
    below = [sum(rank <= u for rank in ranks) / len(ranks) for u in range(count * other // 2)]
    assert _critical_u(count, other, level) == sum(2 * part <= 1 - level + 1e-12 for part in below) - 1


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9, 0.99, 0.995])
@pytest.mark.parametrize("count", [8, 9])
def test_the_critical_rank_sum_is_the_largest_that_claims_a_difference(count: int, level: float) -> None:
    """By all choices of the differences that are negative."""
    sums = [sum(rank + 1 for rank in range(count) if chosen >> rank & 1) for chosen in range(2**count)]
    below = [sum(total <= t for total in sums) / len(sums) for t in range(count * (count + 1) // 4)]
    assert _critical_t(count, level) == sum(2 * part <= 1 - level + 1e-12 for part in below) - 1


@pytest.mark.parametrize(("count", "method"), [(50, "exact"), (51, "asymptotic")])
def test_up_to_a_hundred_values_are_ranked_exactly(count: int, method: str) -> None:
    a, b = np.array(noisy(50)), np.array(noisy(count, around=100.4, seed=2))
    expected = {name: stats.mannwhitneyu(a, b, method=name).pvalue for name in ("exact", "asymptotic")}
    assert _mann_whitney(a, b) == expected[method]
    assert expected["exact"] != expected["asymptotic"]


@pytest.mark.parametrize(("count", "method"), [(100, "exact"), (101, "approx")])
def test_up_to_a_hundred_pairs_are_ranked_exactly(count: int, method: str) -> None:
    differences = np.log(noisy(count, around=1.001))
    expected = {name: stats.wilcoxon(differences, method=name).pvalue for name in ("exact", "approx")}
    assert _wilcoxon(differences) == expected[method]
    assert expected["exact"] != expected["approx"]


def test_ties_are_ranked_by_the_normal_approximation() -> None:
    a, b = np.array([1.0, 2, 2, 3, 5, 8]), np.array([2.0, 4, 5, 6, 7, 9])
    assert _mann_whitney(a, b) == stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert _mann_whitney(np.ones(6), np.full(6, 2.0)) == stats.mannwhitneyu([1] * 6, [2] * 6).pvalue < 0.01
    tied = np.array([1.0, 1, -2, 3, 4, 5, 6, 7, 8])
    assert _wilcoxon(tied) == stats.wilcoxon(tied, method="approx").pvalue


def test_pairs_without_a_difference_are_left_out() -> None:
    eight = np.array([-1.0, 2, 3, 4, 5, 6, 7, 8])
    assert _wilcoxon(np.append(eight, 0.0)) == stats.wilcoxon(eight, method="exact").pvalue == 4 / 2**8
    assert _wilcoxon(np.append(eight[1:], 0.0)) == 1.0


@pytest.mark.parametrize(
    ("critical", "low", "high", "effect"),
    [
        (-1, -0.1, 0.1, None),
        (0, 0.0, 0.0, math.expm1(0.5)),
        (1, 0.0, 0.0, math.expm1(0.3)),
        (2, 0.0, 0.0, math.expm1(0.1)),
        (1, -0.4, 0.35, math.expm1(0.4)),
        (1, -0.35, 0.4, math.expm1(0.4)),
        (3, 0.0, 0.0, NEGLIGIBLE),
    ],
)
def test_the_smallest_effect_by_hand(critical: int, low: float, high: float, effect: float | None) -> None:
    differences = np.array([0.2, -0.5, 0.05, -0.3, -0.1, 0.0, 0.02])
    mirrored = _effect(-differences, critical, -high, -low)
    assert _effect(differences, critical, low, high) == mirrored == effect


def effect_of(value: float | None) -> RatioResult:
    return RatioResult(ratio=1.0, low=1.0, high=1.0, p_value=1.0, smallest_effect=value, method="Wilcoxon")


@pytest.mark.parametrize(
    ("by_round", "unpaired", "used"),
    [
        (0.01, 0.02, True),
        (0.02, 0.01, False),
        (0.02, 0.02, False),
        (0.02, 0.02 * (1 + 5e-10), False),  # rounding
        (0.02, 0.02 * (1 + 5e-9), True),
        (None, 0.02, False),
        (0.02, None, False),
        (None, None, False),
    ],
)
def test_pairs_are_used_where_they_detect_less(by_round: float | None, unpaired: float | None, used: bool) -> None:
    assert _is_more_sensitive(effect_of(by_round), effect_of(unpaired)) is used


def test_a_level_that_pairs_cannot_reach_leaves_the_values_unpaired() -> None:
    drift = np.exp(np.linspace(0, 1, 8))
    a, b = list(drift * noisy(8)), list(drift * noisy(8, around=105.0, seed=2))
    assert ratio(a, b, paired=True).method == "Wilcoxon"
    assert ratio(a, b, paired=True, level=0.995).method == "Mann-Whitney"  # 2 / 2**8 is above 0.005


def reaching(tail: float, weighted: list[tuple[float, float]]) -> float:
    sums = accumulate(weight for _, weight in weighted)
    return next(value for (value, _), total in zip(weighted, sums, strict=True) if total >= tail)


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_a_ratio_of_unpaired_values_by_definition(level: float) -> None:
    a, b = noisy(7, around=110.0, spread=0.2), noisy(6, spread=0.1, seed=2)
    result, quotients = ratio(a, b, level=level), [x / y for x in a for y in b]
    weights = [x * y for x in _median_weights(7) for y in _median_weights(6)]
    ordered = sorted(zip([x / y for x in sorted(a) for y in sorted(b)], weights, strict=True))
    low, high = (reaching((1 - level) / 2, values) for values in (ordered, ordered[::-1]))
    middle = float(np.median(a) / np.median(b))
    logs = np.log(np.divide(quotients, middle))
    effect = _effect(logs, _critical_u(7, 6, level), math.log(low / middle), math.log(high / middle))
    assert (result.ratio, result.low, result.high) == pytest.approx((middle, low, high))
    assert result.p_value == stats.mannwhitneyu(a, b, method="exact").pvalue
    assert result.smallest_effect == pytest.approx(effect)


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_a_ratio_of_pairs_by_definition(level: float) -> None:
    drift = np.exp(np.linspace(0, 1, 9))
    a, b = list(drift * noisy(9, around=110.0)), list(drift * noisy(9, seed=2))
    result, logs = ratio(a, b, level=level, paired=True), [math.log(x / y) for x, y in zip(a, b, strict=True)]
    of_logs, middle = interval(logs, level=level), float(np.median(logs))
    assert of_logs.low is not None
    assert of_logs.high is not None
    averages = np.array([(x + y) / 2 - middle for n, x in enumerate(logs) for y in logs[n:]])
    effect = _effect(averages, _critical_t(9, level), of_logs.low - middle, of_logs.high - middle)
    assert result.method == "Wilcoxon"
    expected = (math.exp(middle), math.exp(of_logs.low), math.exp(of_logs.high))
    assert (result.ratio, result.low, result.high) == pytest.approx(expected)
    assert result.p_value == stats.wilcoxon(logs, method="exact").pvalue
    assert result.smallest_effect == pytest.approx(effect)


@pytest.mark.parametrize(
    ("factor", "key", "values"),
    [
        (3.0, "reason_times", {"ratio": 3.0}),
        (2.0, "reason_times", {"ratio": 2.0}),
        (1.5, "reason_more", {"share": 0.5}),
        (0.5, "reason_less", {"share": 0.5}),
    ],
)
def test_a_difference_in_words(factor: float, key: str, values: dict[str, float]) -> None:
    texts: list[tuple[str, dict[str, object]]] = []

    def say(key: str, **values: object) -> str:
        texts.append((key, values))
        return key

    verdict = compare([value * factor for value in QUIET], QUIET, higher_is_better=True, say=say)
    assert verdict.reason == "reason_claimed"
    assert texts == [(key, values), ("reason_claimed", {"difference": key, "p": "= 0.0079"})]


def test_no_significant_difference_in_words() -> None:
    values = noisy(9, spread=0.01)
    verdict = compare(values, values, higher_is_better=True, say=lambda key, **values: f"{key} {values}")
    assert verdict.ratio is not None
    assert verdict.ratio.smallest_effect is not None
    assert verdict.reason.startswith(f"reason_shown_none {{'percent': {verdict.ratio.smallest_effect * 100}}}")


@pytest.mark.parametrize(
    ("effect", "runs", "needed"),
    [(0.01, 5, 5), (0.015, 5, 5), (0.0151, 5, 13), (0.03, 5, 21), (0.03, 7, 29), (0.06, 6, 97), (0.0151, 30, 31)],
)
def test_how_many_runs_find_three_percent(effect: float, runs: int, needed: int) -> None:
    """Twice the effect is 3% or less: those runs suffice. Else its square, an odd number, of 13 or more."""
    values = noisy(runs)
    result = replace(ratio(values, values), smallest_effect=effect, noise=1.0)
    assert runs_to_find(result, runs) == needed
    by_noise = runs_to_find(replace(result, noise=0.01), runs)
    assert by_noise == (runs if needed == runs else max(13, runs + 1 | 1))


@pytest.mark.parametrize("paired", [False, True])
def test_the_noise_of_a_run_does_not_follow_a_disturbed_one(paired: bool) -> None:
    a, b = noisy(2001, spread=0.02), noisy(2001, spread=0.02, seed=2)
    quiet, disturbed = ratio(a, b, paired=paired), ratio([value * 1.3 for value in a[:60]] + a[60:], b, paired=paired)
    assert quiet.noise == pytest.approx(0.02, rel=0.05)
    assert disturbed.noise == pytest.approx(0.02, rel=0.05)


def test_a_reason_says_how_many_runs_it_takes() -> None:
    def reason(spread: float, runs: int) -> str:
        values = noisy(runs, spread=spread)
        return compare(values, values, higher_is_better=True).reason.partition("; ")[2]

    assert reason(0.001, 5) == ""
    assert re.fullmatch(r"a difference of 3% takes about \d\d runs on each side", reason(0.01, 7))
    assert reason(0.1, 7) == "a difference of 3% takes more than 99 runs on each side, or a quieter machine"


def test_too_few_runs_say_nothing_of_more() -> None:
    with pytest.raises(ValueError, match="has no smallest effect"):
        runs_to_find(ratio([1.0, 1.1], [1.0, 1.1]), 2)


@pytest.mark.parametrize(("count", "text"), [(8, "(p = 0.00016)"), (9, "(p < 0.0001)")])
def test_a_tiny_p_value_in_words(count: int, text: str) -> None:
    """Apart, p is 2 / C(2n, n): 0.00016 for 8 values on each side, 0.00004 for 9."""
    verdict = compare(noisy(count, around=200.0), noisy(count, seed=2), higher_is_better=True)
    assert verdict.reason.endswith(text)


@pytest.mark.parametrize(
    ("low", "high", "p_value", "claimed"),
    [
        (1.001, 1.5, 0.001, True),
        (1.001, 1.5, 1 - VERDICT_LEVEL, True),
        (1.001, 1.5, 0.0101, False),
        (1.0, 1.5, 0.001, False),
        (0.9, 1.5, 0.001, False),
        (0.9, 1.0, 0.001, False),
        (0.9, 0.999, 0.001, True),
    ],
)
def test_interval_and_rank_test_must_agree(low: float, high: float, p_value: float, claimed: bool) -> None:
    assert _claims_difference(replace(effect_of(0.1), low=low, high=high, p_value=p_value)) is claimed

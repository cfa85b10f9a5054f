"""Energy from readings: exact where power is constant, additive, blind to order, and None where it is not covered.

No machine with a meter was at hand: every reading here is made up.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trilithon.measure.energy import energy_by_counter, energy_by_power, energy_of, main_meter, phases
from trilithon.measure.records import Sample, SensorLog, SensorValues, Test

SECOND = 10**9
QUARTER = SECOND // 4

watts = st.floats(0, 5000, allow_nan=False)
# Neighbours up to a second apart, from any moment on.
moments = st.builds(
    lambda start, gaps: [start + sum(gaps[:count]) for count in range(len(gaps) + 1)],
    st.integers(0, 2**60),
    st.lists(st.integers(1, SECOND), min_size=1, max_size=40),
)


@st.composite
def readings(draw: st.DrawFn) -> list[tuple[int, float]]:
    return [(at_ns, draw(watts)) for at_ns in draw(moments)]


def within(draw: st.DrawFn, points: list[tuple[int, float]], count: int) -> list[int]:
    return sorted(draw(st.integers(points[0][0], points[-1][0])) for _ in range(count))


@given(moments, watts, st.data())
def test_constant_power_gives_power_times_time(at: list[int], power: float, data: st.DataObject) -> None:
    points = [(at_ns, power) for at_ns in at]
    start, end = within(data.draw, points, 2)
    assert energy_by_power(points, start, end) == pytest.approx(power * (end - start) / 1e9, rel=1e-9, abs=1e-12)


@given(readings(), st.data())
def test_power_that_rises_in_a_straight_line_is_exact(points: list[tuple[int, float]], data: st.DataObject) -> None:
    zero = points[0][0]
    rising = [(at_ns, (at_ns - zero) / 1e9) for at_ns, _ in points]
    start, end = ((each - zero) / 1e9 for each in within(data.draw, points, 2))
    expected = (end * end - start * start) / 2
    found = energy_by_power(rising, zero + round(start * 1e9), zero + round(end * 1e9))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(readings(), st.data(), st.sampled_from([energy_by_power, energy_by_counter]))
def test_parts_add_up_to_the_whole(points: list[tuple[int, float]], data: st.DataObject, energy) -> None:  # type: ignore[no-untyped-def]
    start, middle, end = within(data.draw, points, 3)
    parts = energy(points, start, middle) + energy(points, middle, end)
    assert parts == pytest.approx(energy(points, start, end), rel=1e-6, abs=1e-6)


@given(readings(), st.randoms(), st.data(), st.sampled_from([energy_by_power, energy_by_counter]))
def test_the_order_of_readings_does_not_matter(points, random, data, energy) -> None:  # type: ignore[no-untyped-def]
    start, end = within(data.draw, points, 2)
    shuffled = random.sample(points, len(points))
    assert energy(shuffled, start, end) == energy(points, start, end)


@given(readings(), st.data())
def test_energy_lies_between_the_least_and_the_most_power(points: list[tuple[int, float]], data: st.DataObject) -> None:
    start, end = within(data.draw, points, 2)
    found = energy_by_power(points, start, end)
    seconds = (end - start) / 1e9
    values = [value for _, value in points]
    assert found is not None
    assert min(values) * seconds - 1e-6 <= found <= max(values) * seconds + 1e-6


@given(readings(), st.data())
def test_a_counter_gives_what_the_power_behind_it_gave(points: list[tuple[int, float]], data: st.DataObject) -> None:
    """Power that is the same from reading to reading, and its integral."""
    total, counter = 0.0, [(points[0][0], 0.0)]
    for (before_ns, power), (after_ns, _) in pairwise(points):
        total += power * (after_ns - before_ns) / 1e9
        counter.append((after_ns, total))
    start, end = within(data.draw, points, 2)
    expected = sum(
        power * max(0, min(after_ns, end) - max(before_ns, start)) / 1e9
        for (before_ns, power), (after_ns, _) in pairwise(points)
    )
    assert energy_by_counter(counter, start, end) == pytest.approx(expected, rel=1e-6, abs=1e-5)


@given(readings(), st.integers(1, 2**40), st.sampled_from([energy_by_power, energy_by_counter]))
def test_what_is_not_covered_is_none(points, more, energy) -> None:  # type: ignore[no-untyped-def]
    first, last = points[0][0], points[-1][0]
    assert energy(points, first - more, last) is None
    assert energy(points, first, last + more) is None
    assert energy(points, last, last - more) is None
    assert energy([], first, last) is None


def test_a_gap_of_more_than_a_second_is_not_bridged() -> None:
    points = [(0, 5.0), (SECOND, 5.0), (2 * SECOND + 1, 5.0), (3 * SECOND, 5.0)]
    assert energy_by_power(points, 0, SECOND) == 5.0
    assert energy_by_power(points, 0, 3 * SECOND) is None
    assert energy_by_power(points, SECOND, SECOND + 1) is None
    assert energy_by_counter(points, 2 * SECOND + 1, 3 * SECOND) == 0.0


TEST = Test(kind="pg", prompt_tokens=100, generated_tokens=40)
SAMPLE = Sample(
    test=TEST,
    started_ns=10 * SECOND,
    finished_ns=20 * SECOND,
    prompt_evaluated=100,
    prompt_ns=3 * SECOND,
    decode_steps=40,
    decode_ns=6 * SECOND,
)


def log_of(*sensors: SensorValues, at_ns: tuple[int, ...]) -> SensorLog:
    return SensorLog(at_ns=at_ns, sensors=sensors)


def meter(values: tuple[float | None, ...], quantity: str = "power", name: str = "VDD_IN") -> SensorValues:
    unit = "watts" if quantity == "power" else "joules"
    return SensorValues(quantity=quantity, name=name, unit=unit, source="/sys/…", values=values)


def test_phases_without_a_stream_end_with_the_request() -> None:
    assert phases(SAMPLE) == ((11 * SECOND, 14 * SECOND), (14 * SECOND, 20 * SECOND))
    prefill = replace(SAMPLE, decode_ns=None, decode_steps=None)
    assert phases(prefill) == ((17 * SECOND, 20 * SECOND), None)
    assert phases(replace(SAMPLE, prompt_ns=None)) == (None, (14 * SECOND, 20 * SECOND))


def test_phases_of_a_stream_turn_at_its_first_piece() -> None:
    turn = 13 * SECOND + 5
    for more in (
        {"thinking_at_ns": (turn, turn + 9)},
        {"answer_at_ns": (turn,)},
        {"thinking_at_ns": (turn,), "answer_at_ns": (turn + 7,)},
        {"marks": {"first_piece_at_ns": turn}},
    ):
        assert phases(replace(SAMPLE, **more)) == ((10 * SECOND + 5, turn), (turn, turn + 6 * SECOND))  # type: ignore[arg-type]


def test_a_phase_stays_within_its_request() -> None:
    """The engine's clock may say a little more than ours."""
    longer = replace(SAMPLE, prompt_ns=5 * SECOND, marks={"first_piece_at_ns": 14 * SECOND + 1})
    assert phases(longer) == ((10 * SECOND, 14 * SECOND + 1), (14 * SECOND + 1, 20 * SECOND))


AT = tuple(range(9 * SECOND, 21 * SECOND + 1, QUARTER))
# 8 W while the prompt is read (11 to 14 s), 5 W while it is answered.
TWO_PHASES = tuple(8.0 if 11 * SECOND <= at_ns < 14 * SECOND else 5.0 for at_ns in AT)


def test_prefill_and_decode_are_told_apart() -> None:
    log = log_of(meter(TWO_PHASES), at_ns=AT)
    found = energy_of(SAMPLE, log, log.sensors[0])
    # Half a step of the turn falls to the other side.
    assert found.joules_per_prompt_token == pytest.approx((3 * 8 - QUARTER / SECOND * 3 / 2) / 100)
    assert found.joules_per_generated_token == pytest.approx(6 * 5 / 40)


def test_a_counter_tells_the_same() -> None:
    joules, values = 0.0, [0.0]
    for (before_ns, after_ns), power in zip(pairwise(AT), TWO_PHASES, strict=False):
        joules += power * (after_ns - before_ns) / 1e9
        values.append(joules)
    log = log_of(meter(tuple(values), "energy", "package-0"), at_ns=AT)
    found = energy_of(SAMPLE, log, log.sensors[0])
    assert found.joules_per_prompt_token == pytest.approx(0.24)
    assert found.joules_per_generated_token == pytest.approx(0.75)


def test_without_tokens_or_a_phase_there_is_no_figure() -> None:
    log = log_of(meter(TWO_PHASES), at_ns=AT)
    for less in ({"prompt_evaluated": None}, {"prompt_evaluated": 0}, {"prompt_ns": None}):
        found = energy_of(replace(SAMPLE, **less), log, log.sensors[0])  # type: ignore[arg-type]
        assert found.joules_per_prompt_token is None
        assert found.joules_per_generated_token is not None


def test_a_phase_that_is_too_short_for_the_readings_has_no_figure() -> None:
    log = log_of(meter(TWO_PHASES), at_ns=AT)
    short = replace(SAMPLE, prompt_ns=QUARTER * 3 - 1)
    assert energy_of(short, log, log.sensors[0]).joules_per_prompt_token is None
    enough = replace(SAMPLE, prompt_ns=QUARTER * 3)
    assert energy_of(enough, log, log.sensors[0]).joules_per_prompt_token is not None


def test_a_meter_that_fell_silent_has_no_figure() -> None:
    values = tuple(None if at_ns > 16 * SECOND else 5.0 for at_ns in AT)
    log = log_of(meter(values), at_ns=AT)
    found = energy_of(SAMPLE, log, log.sensors[0])
    assert found.joules_per_prompt_token == pytest.approx(0.15)
    assert found.joules_per_generated_token is None


def test_of_several_meters_the_one_that_tells_most_counts() -> None:
    whole = meter(tuple(7.0 for _ in AT), name="VDD_IN")
    part = meter(tuple(3.0 for _ in AT), name="VDD_CPU")
    package = meter(tuple(6.0 * (at_ns - AT[0]) / 1e9 for at_ns in AT), "energy", "package-0")
    hot = SensorValues(quantity="temperature", name="soc", unit="celsius", source="", values=tuple(90.0 for _ in AT))
    assert main_meter(log_of(part, package, whole, hot, at_ns=AT)) == whole
    assert main_meter(log_of(part, package, hot, at_ns=AT)) == package
    assert main_meter(log_of(hot, at_ns=AT)) is None
    assert main_meter(log_of(meter(tuple(None for _ in AT)), at_ns=AT)) is None
    assert main_meter(SensorLog()) is None


def test_two_readings_of_a_counter_are_enough_for_its_power() -> None:
    counter = meter((100.0, 110.0, 130.0), "energy", "package-0")
    power = meter((14.0, 14.0, 14.0))
    at = (SECOND, 2 * SECOND, 3 * SECOND)
    assert main_meter(log_of(power, counter, at_ns=at)) == counter  # 15 W
    assert main_meter(log_of(power, replace(counter, values=(100.0, 131.0, 127.0)), at_ns=at)) == power  # 13.5 W
    two = replace(counter, values=(None, 110.0, 130.0))
    assert main_meter(log_of(two, at_ns=at)) == two
    assert main_meter(log_of(replace(counter, values=(None, 110.0, None)), at_ns=at)) is None
    assert main_meter(log_of(counter, at_ns=(SECOND, SECOND, SECOND))) is None


def test_readings_of_one_moment_are_no_interval() -> None:
    points = [(0, 1.0), (0, 3.0), (SECOND, 3.0), (SECOND, 5.0)]
    assert energy_by_power(points, 0, SECOND) == 3.0
    assert energy_by_counter(points, 0, SECOND) == 0.0
    assert energy_by_counter(points, SECOND, SECOND) == 0.0
    between = [(0, 1.0), (QUARTER, 1.0), (QUARTER, 5.0), (SECOND, 5.0)]
    assert energy_by_power(between, 0, SECOND) == 4.0
    assert energy_by_counter(between, 0, SECOND) == 4.0


def test_readings_beyond_reason_have_an_average() -> None:
    """Their sum is more than a number can hold."""
    broken = meter(tuple(1.7e308 for _ in AT))
    assert main_meter(log_of(broken, at_ns=AT)) == broken


@given(
    st.lists(st.integers(0, 2**62)), st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)), st.data()
)
def test_any_log_gives_figures_or_none(at: list[int], values: list[float | None], data: st.DataObject) -> None:
    """An import may hold anything."""
    assume(len(values) < 100)
    quantity = data.draw(st.sampled_from(["power", "energy", "clock"]))
    log = log_of(meter(tuple(values), quantity), at_ns=tuple(at))
    energy_of(SAMPLE, log, log.sensors[0])
    assert main_meter(log) in (None, log.sensors[0])

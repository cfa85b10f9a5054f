"""Rests that double, and come to an end."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.handover.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff


class Clock:
    now_ns = 5

    def __call__(self) -> int:
        return self.now_ns

    def pass_by(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def lasted(rests: Backoff, clock: Clock) -> float:
    """Seconds until it may be tried again, to the tenth."""
    began_ns = clock.now_ns
    while rests.reason:
        clock.pass_by(0.1)
    return (clock.now_ns - began_ns) / 1e9


def test_a_rest_ends_and_its_reason_is_kept() -> None:
    clock = Clock()
    rests = Backoff(clock)
    assert (rests.reason, rests.last, rests.count) == ("", "", 0)
    rests.begin("it was used for nothing")
    assert rests.reason == "it was used for nothing"
    clock.pass_by(FIRST_SECONDS - 1)
    assert rests.reason
    clock.pass_by(1)
    assert (rests.reason, rests.last, rests.count) == ("", "it was used for nothing", 1)


def test_each_is_twice_as_long_up_to_the_longest_until_it_worked() -> None:
    clock = Clock()
    rests, lengths = Backoff(clock), []
    for _ in range(12):
        rests.begin("again")
        lengths.append(round(lasted(rests, clock)))
    assert lengths[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert all(later == min(2 * earlier, LONGEST_SECONDS) for earlier, later in pairwise(lengths))
    assert lengths[-1] == LONGEST_SECONDS
    rests.worked()
    rests.begin("again")
    assert round(lasted(rests, clock)) == FIRST_SECONDS


def test_what_ends_well_during_a_rest_does_not_shorten_the_next() -> None:
    clock = Clock()
    rests = Backoff(clock)
    rests.begin("again")
    rests.worked()
    lasted(rests, clock)
    rests.begin("again")
    assert round(lasted(rests, clock)) == 2 * FIRST_SECONDS


def test_failing_together_counts_once() -> None:
    clock = Clock()
    rests = Backoff(clock)
    for number in range(5):
        rests.begin(f"request {number}")
    assert (rests.reason, rests.count) == ("request 0", 1)
    assert round(lasted(rests, clock)) == FIRST_SECONDS


@given(st.lists(st.sampled_from(["begin", "worked", "wait"]), max_size=200))
def test_no_rest_is_for_ever(steps: list[str]) -> None:
    clock = Clock()
    rests = Backoff(clock)
    for step in steps:
        if step == "begin":
            rests.begin("again")
        elif step == "worked":
            rests.worked()
        else:
            clock.pass_by(3000)
    clock.pass_by(LONGEST_SECONDS)
    assert rests.reason == ""

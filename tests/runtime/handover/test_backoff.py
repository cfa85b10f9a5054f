"""Pauses that double, and end."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.handover.backoff import FIRST_SECONDS, MAX_SECONDS, Backoff


class Clock:
    now_ns = 5

    def __call__(self) -> int:
        return self.now_ns

    def pass_by(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def lasted(backoff: Backoff, clock: Clock) -> float:
    """Seconds until it may be tried again, to the tenth."""
    began_ns = clock.now_ns
    while backoff.reason:
        clock.pass_by(0.1)
    return (clock.now_ns - began_ns) / 1e9


def test_a_pause_ends_and_its_reason_is_kept() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    assert (backoff.reason, backoff.last_reason, backoff.count) == ("", "", 0)
    backoff.begin("it was used for nothing")
    assert backoff.reason == "it was used for nothing"
    clock.pass_by(FIRST_SECONDS - 1)
    assert backoff.reason
    clock.pass_by(1)
    assert (backoff.reason, backoff.last_reason, backoff.count) == ("", "it was used for nothing", 1)


def test_each_is_twice_as_long_up_to_the_longest_until_a_success() -> None:
    clock = Clock()
    backoff, lengths = Backoff(clock), []
    for _ in range(12):
        backoff.begin("again")
        lengths.append(round(lasted(backoff, clock)))
    assert lengths[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert all(later == min(2 * earlier, MAX_SECONDS) for earlier, later in pairwise(lengths))
    assert lengths[-1] == MAX_SECONDS
    backoff.succeeded()
    backoff.begin("again")
    assert round(lasted(backoff, clock)) == FIRST_SECONDS


def test_what_ends_well_during_a_pause_does_not_shorten_the_next() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    backoff.begin("again")
    backoff.succeeded()
    lasted(backoff, clock)
    backoff.begin("again")
    assert round(lasted(backoff, clock)) == 2 * FIRST_SECONDS


def test_failing_together_counts_once() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    for number in range(5):
        backoff.begin(f"request {number}")
    assert (backoff.reason, backoff.count) == ("request 0", 1)
    assert round(lasted(backoff, clock)) == FIRST_SECONDS


@given(st.lists(st.sampled_from(["begin", "succeeded", "wait"]), max_size=200))
def test_no_pause_is_for_ever(steps: list[str]) -> None:
    clock = Clock()
    backoff = Backoff(clock)
    for step in steps:
        if step == "begin":
            backoff.begin("again")
        elif step == "succeeded":
            backoff.succeeded()
        else:
            clock.pass_by(3000)
    clock.pass_by(MAX_SECONDS)
    assert backoff.reason == ""

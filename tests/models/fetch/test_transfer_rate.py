"""Rates and limits, on a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import UserError
from trilithon.models.fetch.transfer_rate import RateLimit, TransferProgress, TransferRate, parse_rate


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def test_a_steady_rate() -> None:
    clock = Clock()
    pace = TransferRate(clock)
    assert pace.at(500, 10_500) == TransferProgress(500, 10_500)  # what was there before says nothing about the rate
    for second in range(1, 6):
        clock.forward(1)
        found = pace.at(500 + second * 1000, 10_500)
    assert found == TransferProgress(5500, 10_500, pytest.approx(1000), pytest.approx(5))


def test_the_last_seconds_count() -> None:
    clock = Clock()
    pace = TransferRate(clock)
    for _ in range(30):
        clock.forward(1)
        pace.at(0, 100)
    for second in range(1, 12):
        clock.forward(1)
        found = pace.at(second * 5, None)
    assert found.bytes_per_second == pytest.approx(5)
    assert found.seconds_left is None


def test_nothing_comes() -> None:
    clock = Clock()
    pace = TransferRate(clock)
    pace.at(7, 10)
    clock.forward(20)
    assert pace.at(7, 10) == TransferProgress(7, 10, 0.0, None)


def test_begun_anew() -> None:
    clock = Clock()
    pace = TransferRate(clock)
    pace.at(1000, 2000)
    clock.forward(1)
    assert pace.at(0, 2000) == TransferProgress(0, 2000)


@given(
    st.lists(st.tuples(st.integers(1, 65536), st.floats(0, 0.5)), min_size=1, max_size=60), st.integers(1024, 1 << 30)
)
def test_a_limit_is_never_passed(taken: list[tuple[int, float]], rate: int) -> None:
    clock = Clock()
    limit, began, count = RateLimit(rate, clock), clock.now_ns, 0
    for piece, work_seconds in taken:
        count += piece
        clock.forward(limit.take(piece))
        clock.forward(work_seconds)
    seconds = (clock.now_ns - began - int(taken[-1][1] * 1e9)) / 1e9
    assert seconds >= (count - 0.21 * rate) / rate - 1e-6


def test_no_limit() -> None:
    assert RateLimit(None).take(1 << 40) == 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500k", 512_000), ("2M", 2 << 20), ("1.5MB/s", 1.5 * (1 << 20)), ("1GiB/s", 1 << 30), ("4096", 4096)],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text, name="--limit") == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "1023", "2 M", "1e6", "M", "9" * 30])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UserError, match=r"--limit .*: write a rate from 1k on"):
        parse_rate(text, name="--limit")

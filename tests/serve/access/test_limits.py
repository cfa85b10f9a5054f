"""Bodies that are too long, too slow or cut off, and callers that come too often."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from trilithon.serve.access.limits import BodyLimits, BoundedBody, Buckets, caller_at
from trilithon.serve.http.errors import ApiError

SECOND = 1_000_000_000


class Sender:
    """A `receive` that gives these parts, then is silent; counts how often it was asked."""

    def __init__(self, parts: Iterable[bytes], *, ends: bool = True, pause_seconds: float = 0.0):
        parts = list(parts)
        self.messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": not ends or number < len(parts) - 1}
            for number, part in enumerate(parts)
        ]
        self.pause_seconds = pause_seconds
        self.asked = 0

    async def __call__(self) -> Message:
        self.asked += 1
        if self.pause_seconds:
            await asyncio.sleep(self.pause_seconds)
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError


async def taken(body: BoundedBody) -> bytes:
    found = b""
    while True:
        message = await body()
        found += message.get("body", b"")
        if message["type"] != "http.request" or not message["more_body"]:
            return found


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=10), st.integers(1, 200))
def test_a_body_passes_whole_or_not_at_all(parts: list[bytes], most: int) -> None:
    async def run() -> None:
        body = BoundedBody(Sender(parts), BodyLimits(most_bytes=most))
        whole = b"".join(parts)
        if len(whole) <= most:
            assert await taken(body) == whole
            assert body.problem is None
        else:
            with pytest.raises(ApiError) as told:
                await taken(body)
            assert told.value.status == 413
            assert body.problem is told.value
            with pytest.raises(ApiError):
                await body()

    asyncio.run(run())


def test_an_announced_length_is_believed_when_it_is_too_much() -> None:
    async def run() -> None:
        sender = Sender([b"x"])
        with pytest.raises(ApiError, match="larger than 10 B"):
            await BoundedBody(sender, BodyLimits(most_bytes=10), announced=11)()
        assert sender.asked == 0

    asyncio.run(run())


def test_silence_ends_a_body() -> None:
    async def run() -> None:
        body = BoundedBody(Sender([b"{"], ends=False), BodyLimits(silence_seconds=0.05))
        await body()
        with pytest.raises(ApiError) as told:
            await body()
        assert told.value.status == 408

    asyncio.run(run())


def test_a_byte_now_and_then_is_not_enough() -> None:
    async def run() -> None:
        limits = BodyLimits(silence_seconds=0.3, slowest_bytes_per_second=1000)
        sender = Sender([b"x"] * 1000, pause_seconds=0.02)
        with pytest.raises(ApiError) as told:
            await taken(BoundedBody(sender, limits))
        assert told.value.status == 408
        assert 2 <= sender.asked < 100

    asyncio.run(run())


def test_a_slow_body_that_goes_on_is_borne_with() -> None:
    async def run() -> None:
        limits = BodyLimits(silence_seconds=5, slowest_bytes_per_second=1)
        assert len(await taken(BoundedBody(Sender([b"x" * 100] * 20, pause_seconds=0.01), limits))) == 2000

    asyncio.run(run())


def test_after_the_body_there_is_no_hurry() -> None:
    """What comes then is the client's leaving, which may be hours away."""

    async def run() -> None:
        body = BoundedBody(Sender([b"{}"]), BodyLimits(silence_seconds=0.01))
        await body()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(body(), 0.2)
        assert body.problem is None

    asyncio.run(run())


def test_a_client_that_leaves_is_no_problem() -> None:
    async def run() -> None:
        sender = Sender([b"{"], ends=False)
        sender.messages.append({"type": "http.disconnect"})
        body = BoundedBody(sender, BodyLimits())
        assert await taken(body) == b"{"
        assert body.problem is None

    asyncio.run(run())


# -- buckets


@given(st.integers(1, 120), st.lists(st.integers(0, 5 * SECOND), min_size=1, max_size=200))
def test_no_minute_lets_more_through_than_twice_the_rate(per_minute: int, pauses: list[int]) -> None:
    """What was saved up and what comes in meanwhile; over longer times the rate itself."""
    buckets, now, passed = Buckets(per_minute), 0, []
    for pause in pauses:
        now += pause
        if buckets.take("a", now) == 0.0:
            passed.append(now)
    for index, began in enumerate(passed):
        within = [at for at in passed[index:] if at <= began + 60 * SECOND]
        assert len(within) <= 2 * per_minute + 1
    assert len(passed) <= per_minute + per_minute * now / (60 * SECOND) + 1


@given(st.integers(1, 120), st.integers(1, 300))
def test_who_waits_as_long_as_told_gets_in(per_minute: int, asked: int) -> None:
    buckets = Buckets(per_minute)
    waits = [buckets.take("a", 0) for _ in range(asked)]
    assert [wait == 0.0 for wait in waits] == [number < per_minute for number in range(asked)]
    if waits[-1]:
        assert waits[-1] <= 60.0 / per_minute + 1e-9
        assert buckets.take("a", int(waits[-1] * SECOND) + 1000) == 0.0


def test_callers_do_not_take_from_each_other() -> None:
    buckets = Buckets(1)
    assert [buckets.take(name, 0) for name in "abc"] == [0.0, 0.0, 0.0]
    assert all(buckets.take(name, 0) > 0 for name in "abc")


def test_memory_is_bounded_however_many_come() -> None:
    buckets = Buckets(1, most_callers=10)
    for number in range(1000):
        buckets.take(f"caller {number}", number)
    assert len(buckets) == 10


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.168.1.2", "192.168.1.3", False),
        ("::ffff:192.168.1.2", "::ffff:192.168.1.3", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("testclient", "other", False),
    ],
)
def test_a_network_of_ipv6_is_one_caller(one: str, other: str, same: bool) -> None:
    assert (caller_at(one) == caller_at(other)) is same

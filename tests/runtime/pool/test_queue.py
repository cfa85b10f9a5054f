import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_placement import scripted_placement

from trilithon.runtime.pool.history import History, backoff_seconds
from trilithon.runtime.pool.planning import Demand
from trilithon.runtime.pool.queue import Busy, FairQueue, PendingRequest, RequestQueue


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def waiter(loop: asyncio.AbstractEventLoop, caller: str, came: float, key: str = "a") -> PendingRequest:
    return PendingRequest(
        key=key,
        placement=scripted_placement(),
        need_bytes=1,
        caller=caller,
        keep_alive_seconds=1.0,
        arrived=came,
        granted=loop.create_future(),
    )


@given(st.lists(st.sampled_from("wxyz")))
def test_nobody_is_served_twice_while_another_waits(loop: asyncio.AbstractEventLoop, callers: list[str]) -> None:
    queue = FairQueue()
    for came, caller in enumerate(callers):
        queue.add(waiter(loop, caller, came))
    left = {caller: callers.count(caller) for caller in callers}
    served: dict[str, list[float]] = {caller: [] for caller in left}
    while queue:
        assert queue.oldest == min(each.arrived for each in queue)
        head = queue.head
        one = queue.take()
        assert one is head
        served[one.caller].append(one.arrived)
        rounds = [len(served[caller]) for caller in left if len(served[caller]) < left[caller]]
        assert all(len(served[one.caller]) <= each + 1 for each in rounds)
    assert all(times == sorted(times) and len(times) == left[caller] for caller, times in served.items())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=30))
def test_a_room_holds_who_came_and_has_not_left(loop: asyncio.AbstractEventLoop, who: list[tuple[str, str]]) -> None:
    room = RequestQueue(10)
    inside = [waiter(loop, caller, came, key) for came, (key, caller) in enumerate(who)]
    for one in inside:
        room.add(one)
    leaving = inside[::3]
    for one in leaving * 2:  # the second time it is not there any more
        room.remove(one)
    stay = [one for one in inside if one not in leaving]
    assert len(room) == len(stay)
    for key in "ab":
        assert sorted(each.arrived for each in room.of(key)) == [each.arrived for each in stay if each.key == key]
        assert room.has(key) == any(each.key == key for each in stay) == (room.head(key) is not None)
    displaced = room.to_displace("x")
    counts = {caller: sum(each.caller == caller for each in stay) for caller in "xyz"}
    assert (displaced is not None) == (max(counts.values()) > counts["x"] + 1)
    if displaced is not None:
        own = [each for each in stay if each.caller == displaced.caller]
        assert displaced is own[-1] and len(own) == max(counts.values())


def test_a_queue_demands_its_model_for_the_oldest_request(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue()
    for caller, came in (("x", 5.0), ("y", 3.0), ("x", 6.0)):
        queue.add(waiter(loop, caller, came))
    assert queue.demand() == Demand("a", scripted_placement(), 1, 1.0, 3.0)
    assert queue.demand().placement == queue.head.placement


def test_requests_leave_by_being_taken_or_refused(loop: asyncio.AbstractEventLoop) -> None:
    room = RequestQueue(10)
    requests = [waiter(loop, "x", came, key) for came, key in enumerate("aab")]
    for request in requests:
        room.add(request)
    assert [(key, list(queue)) for key, queue in room.queues()] == [("a", requests[:2]), ("b", requests[2:])]
    assert room.take("b") is requests[2]
    assert not room.has("b")
    requests[1].granted.cancel()
    error = Busy("the queue is full", retry_after_seconds=2.5)
    room.refuse(room.of("a"), error)
    assert (len(room), room.queues(), requests[1].granted.cancelled()) == (0, [], True)
    assert requests[0].granted.exception() is error
    assert (str(error), error.retry_after_seconds) == ("the queue is full", 2.5)


def test_an_empty_queue_has_nobody_to_displace() -> None:
    assert RequestQueue(0).to_displace("x") is None


@pytest.mark.parametrize(("others", "displaced"), [(1, None), (2, None), (3, 2)])
def test_a_caller_displaces_only_who_has_more_even_with_its_own(
    loop: asyncio.AbstractEventLoop, others: int, displaced: int | None
) -> None:
    room = RequestQueue(10)
    room.add(waiter(loop, "x", 100.0))
    requests = [waiter(loop, "y", came, "ab"[came % 2]) for came in range(others)]
    for request in requests:
        room.add(request)
    assert room.to_displace("x") is (None if displaced is None else requests[displaced])


def test_rests_double_up_to_a_minute() -> None:
    assert [backoff_seconds(count) for count in range(11)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff_seconds(10**9) == 60


def test_failures_are_of_one_placement_and_forgiven_for_good_work() -> None:
    history = History()
    one, other = scripted_placement(), scripted_placement("other")
    history.record_failure(one, "first", 100.0)
    assert history.retry_in_seconds(one, 100.0) == 0
    history.record_failure(one, "second", 100.0)
    assert (
        history.retry_in_seconds(one, 100.25) == 0.75
        and history.retry_in_seconds(other, 100.0) == 0
        and history.retry_in_seconds(one, 102) == 0
    )
    history.record_failure(other, "third", 103.0)
    assert history.retry_in_seconds(other, 103.0) == 0 and history.last_error == "third"
    history.record_failure(other, "fourth", 103.0)
    history.record_success(2.0)
    assert history.retry_in_seconds(other, 103.0) == 0 and history.last_error == ""


@given(st.lists(st.floats(0, 1e6)), st.integers(1, 10**6), st.integers(1, 64))
def test_what_a_client_is_told_to_wait_is_within_reason(services: list[float], waiting: int, slots: int) -> None:
    history = History()
    for seconds in services:
        history.record_success(seconds)
    assert 1 <= history.retry_after_seconds(waiting, slots) <= 120


def test_what_a_client_is_told_follows_recent_requests() -> None:
    history = History()
    for _ in range(30):
        history.record_success(4.0)
    assert history.retry_after_seconds(10, 2) == pytest.approx(20)
    for _ in range(30):
        history.record_success(1.0)
    assert history.retry_after_seconds(10, 2) == pytest.approx(5, rel=0.01)

"""The decisions of the pool on snapshots, without any process."""

import math

from hypothesis import given
from hypothesis import strategies as st
from scripted_placement import scripted_placement

from trilithon.runtime.pool.budget import Budget
from trilithon.runtime.pool.planning import Demand, ModelSnapshot, PoolSnapshot, State

_PLACEMENT = scripted_placement()
_NOW = 100.0


def demand(key: str, need_bytes: int, since: float = 0.0) -> Demand:
    return Demand(key, _PLACEMENT, need_bytes, 300.0, since)


def model(
    key: str,
    need_bytes: int,
    *,
    state: State = "ready",
    in_use: bool = False,
    requested: bool = False,
    pinned: bool = False,
    last_used: float = 0.0,
    residency_ends: float = 0.0,
) -> ModelSnapshot:
    return ModelSnapshot(
        key=key,
        need_bytes=need_bytes,
        state=state,
        in_use=in_use,
        requested=requested,
        pinned=pinned,
        last_used=last_used,
        residency_ends=residency_ends,
    )


def pool(*models: ModelSnapshot, budget: int | None = 1000, max_loaded: int = 100, **pins: int) -> PoolSnapshot:
    memory = None if budget is None else Budget(now=budget, total=budget)
    return PoolSnapshot(models=models, pins=pins, budget=memory, max_loaded=max_loaded, now=_NOW)


def keys(demands: list[Demand]) -> list[str]:
    return [each.key for each in demands]


def test_demands_that_fit_are_loaded_in_the_order_of_their_age() -> None:
    decisions = pool(budget=500).decide(
        [demand("young", 100, 3.0), demand("old", 100, 1.0), demand("pin", 300, math.inf)]
    )
    assert keys(decisions.load) == ["old", "young", "pin"]
    assert not decisions.refuse and not decisions.evict and not decisions.full and decisions.next_at == math.inf


def test_a_demand_that_has_to_wait_makes_later_ones_wait() -> None:
    used = model("used", 600, in_use=True, residency_ends=_NOW)
    decisions = pool(used).decide([demand("large", 500, 1.0), demand("small", 100, 2.0)])
    assert not decisions.load and not decisions.evict and decisions.full == {"used"}


def test_one_byte_decides_whether_a_model_is_evicted() -> None:
    idle = model("idle", 600)
    assert keys(pool(idle).decide([demand("new", 400)]).load) == ["new"]
    decisions = pool(idle).decide([demand("new", 401)])
    assert decisions.evict == ["idle"] and not decisions.load


def test_the_least_recently_used_model_is_evicted_first() -> None:
    models = [model("b", 400, last_used=2.0), model("a", 400, last_used=1.0)]
    assert pool(*models).decide([demand("new", 300)]).evict == ["a"]
    assert pool(*models).decide([demand("new", 700)]).evict == ["a", "b"]


def test_idle_models_are_evicted_before_busy_ones_stop_getting_requests() -> None:
    models = [model("used", 500, in_use=True, last_used=1.0), model("idle", 400, last_used=2.0)]
    decisions = pool(*models).decide([demand("new", 300)])
    assert decisions.evict == ["idle"] and not decisions.full


def test_nothing_is_evicted_while_busy_models_are_needed_too() -> None:
    models = [model("used", 500, in_use=True), model("idle", 400)]
    decisions = pool(*models).decide([demand("new", 800)])
    assert not decisions.evict and decisions.full == {"used"}


def test_a_requested_model_is_kept_until_its_minimum_residency_is_over() -> None:
    requested = model("old", 800, requested=True, residency_ends=_NOW + 7)
    decisions = pool(requested).decide([demand("new", 300)])
    assert not decisions.evict and not decisions.full and decisions.next_at == _NOW + 7
    over = model("old", 800, requested=True, residency_ends=_NOW)
    assert pool(over).decide([demand("new", 300)]).evict == ["old"]


def test_pinned_and_awaited_models_are_never_evicted() -> None:
    kept = [model("pinned", 400, pinned=True), model("awaited", 400, state="loading", requested=True)]
    decisions = pool(*kept, pinned=400).decide([demand("new", 300)])
    assert not decisions.load and not decisions.evict and not decisions.full
    assert pool(model("given up", 800, state="loading")).decide([demand("new", 300)]).evict == ["given up"]


def test_leaving_models_count_as_room_to_come() -> None:
    models = [model("leaving", 500, state="leaving"), model("idle", 400)]
    decisions = pool(*models).decide([demand("new", 600)])
    assert not decisions.load and not decisions.evict
    assert pool(*models).decide([demand("new", 601)]).evict == ["idle"]


def test_leaving_models_count_as_places_to_come() -> None:
    models = [model("leaving", 1, state="leaving"), model("a", 1, last_used=1.0), model("b", 1, last_used=2.0)]
    assert pool(*models, max_loaded=3).decide([demand("new", 1)]).evict == []
    assert pool(*models, max_loaded=2).decide([demand("new", 1)]).evict == ["a"]


def test_places_are_limited_as_memory_is() -> None:
    models = [model("a", 1, last_used=1.0), model("b", 1, last_used=2.0)]
    decisions = pool(*models, max_loaded=3).decide([demand("c", 1, 1.0), demand("d", 1, 2.0)])
    assert keys(decisions.load) == ["c"] and decisions.evict == ["a"]


def test_without_a_known_budget_only_places_count() -> None:
    assert keys(pool(model("a", 1 << 60), budget=None).decide([demand("b", 1 << 60)]).load) == ["b"]


def test_what_can_never_fit_is_refused_and_does_not_hold_up_others() -> None:
    decisions = pool(p=600).decide([demand("large", 401, 1.0), demand("small", 400, 2.0)])
    assert keys([refused for refused, _ in decisions.refuse]) == ["large"] and keys(decisions.load) == ["small"]
    assert "pinned models need 600 B" in str(decisions.refuse[0][1])
    assert pool(p=600).refusal("p", _PLACEMENT, 1000) is None  # its own pin is not in its way


def test_no_place_is_left_when_all_are_pinned() -> None:
    full = pool(max_loaded=2, p=1, q=1)
    refusal = full.refusal("new", _PLACEMENT, 1)
    assert refusal is not None and refusal.cause == "every place is pinned"
    assert full.refusal("p", _PLACEMENT, 1) is None


_MODELS = st.builds(
    model,
    st.uuids().map(str),
    st.integers(1, 400),
    state=st.sampled_from(["loading", "ready", "leaving"]),
    in_use=st.booleans(),
    requested=st.booleans(),
    pinned=st.booleans(),
    last_used=st.floats(0, _NOW),
    residency_ends=st.floats(0, 2 * _NOW),
)


@given(st.lists(_MODELS, max_size=8), st.lists(st.integers(1, 600), max_size=5), st.integers(0, 1500))
def test_decisions_stay_within_the_budget(models: list[ModelSnapshot], needs: list[int], budget: int) -> None:
    demands = [demand(str(number), need, number) for number, need in enumerate(needs)]
    snapshot = pool(*models, budget=budget)
    decisions = snapshot.decide(demands)
    taken = sum(each.need_bytes for each in models) + sum(each.need_bytes for each in decisions.load)
    assert not decisions.load or taken <= budget
    by_key = {each.key: each for each in models}
    for key in decisions.evict:
        assert by_key[key].evictable and not by_key[key].is_busy(_NOW)
    for key in decisions.full:
        assert by_key[key].evictable and by_key[key].is_busy(_NOW) and by_key[key].residency_ends <= _NOW
    assert decisions.next_at > _NOW

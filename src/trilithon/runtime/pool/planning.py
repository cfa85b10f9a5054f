"""What to load, evict and refuse, decided on a snapshot of the pool. Pure: `Pool` acts on the decisions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trilithon.engines.base import Placement
from trilithon.errors import StartError
from trilithon.runtime.pool.budget import Budget, fewest
from trilithon.units import format_bytes

__all__ = ["Demand", "LoadDecisions", "ModelSnapshot", "PoolSnapshot", "State"]

State = Literal["loading", "ready", "leaving"]


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that is to be loaded. `since` is when the oldest request for it arrived (monotonic seconds); infinite
    where only its pin demands it."""

    key: str
    placement: Placement
    need_bytes: int
    keep_alive_seconds: float
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """A loaded model. `requested`: requests wait for it. Times are monotonic, in seconds."""

    key: str
    need_bytes: int
    state: State
    in_use: bool
    requested: bool
    pinned: bool
    last_used: float
    residency_ends: float

    @property
    def evictable(self) -> bool:
        """A load continues as long as a request waits for it."""
        awaited = self.state == "loading" and self.requested
        return self.state != "leaving" and not self.pinned and not awaited

    def is_busy(self, now: float) -> bool:
        return self.in_use or (self.requested and self.residency_ends > now)


@dataclass(slots=True)
class LoadDecisions:
    """`evict_for` is the model that `evict` makes room for. `full` are keys of models that get no new requests, so that
    they become idle and can be evicted; `next_at` is when a decision may change without an event."""

    load: list[Demand] = field(default_factory=list)
    refuse: list[tuple[Demand, StartError]] = field(default_factory=list)
    evict: list[str] = field(default_factory=list)
    evict_for: str = ""
    full: set[str] = field(default_factory=set)
    next_at: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """`pins` is the need of every pinned model in bytes, by key; `budget` None: the kernel does not report it."""

    models: tuple[ModelSnapshot, ...]
    pins: Mapping[str, int]
    budget: Budget | None
    max_loaded: int
    now: float

    def decide(self, demands: Iterable[Demand]) -> LoadDecisions:
        """Load what fits, oldest demand first. The first demand that has to wait makes the later ones wait too:
        otherwise small models could keep a large one out for ever."""
        decisions = LoadDecisions()
        counted = sum(model.need_bytes for model in self.models)
        for demand in sorted(demands, key=lambda demand: demand.since):
            refusal = self.refusal(demand.key, demand.placement, demand.need_bytes)
            if refusal:
                decisions.refuse.append((demand, refusal))
                continue
            missing_bytes = 0 if self.budget is None else demand.need_bytes + counted - self.budget.now
            missing_places = len(self.models) + len(decisions.load) + 1 - self.max_loaded
            if missing_bytes > 0 or missing_places > 0:
                decisions.evict_for = demand.key
                self._make_room(decisions, missing_bytes, missing_places)
                break
            decisions.load.append(demand)
            counted += demand.need_bytes
        return decisions

    def _make_room(self, decisions: LoadDecisions, missing_bytes: int, missing_places: int) -> None:
        """Evict idle models, the least recently used first. Where they are not enough, stop giving requests to busy
        ones whose minimum residency is over."""
        leaving = [model for model in self.models if model.state == "leaving"]
        candidates = sorted(
            (model for model in self.models if model.evictable),
            key=lambda model: (model.is_busy(self.now), model.last_used),
        )
        missing_bytes -= sum(model.need_bytes for model in leaving)
        chosen = fewest(candidates, missing_bytes, missing_places - len(leaving)) or []
        busy = [model for model in chosen if model.is_busy(self.now)]
        if not busy:
            decisions.evict = [model.key for model in chosen]
        for model in busy:
            if model.residency_ends > self.now:
                decisions.next_at = min(decisions.next_at, model.residency_ends)
            else:
                decisions.full.add(model.key)

    def refusal(self, key: str, placement: Placement, need_bytes: int) -> StartError | None:
        """Why the model could never be loaded, whatever else is unloaded; None when it could."""
        pinned = [need for other, need in self.pins.items() if other != key]
        if len(pinned) >= self.max_loaded:
            return StartError(
                f"{key} cannot be loaded: {len(pinned)} models are pinned, and at most that many may be loaded",
                cause="every place is pinned",
                advice="pin fewer models, or allow more to be loaded",
            )
        if self.budget is None or need_bytes + sum(pinned) <= self.budget.total:
            return None
        taken = f", of which pinned models need {format_bytes(sum(pinned))}" if pinned else ""
        return StartError(
            f"{key} needs about {format_bytes(need_bytes)} of memory as {placement.name}, and the "
            f"memory budget is {format_bytes(self.budget.total)}{taken}",
            cause="not enough memory",
            advice="choose a smaller quantization or a shorter context, or raise the memory budget",
        )

"""What is loaded now, and the memory that it takes against the budget: one picture, compared with the one before."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trilithon.runtime.pool.pool import Loaded, Pool

__all__ = ["Live", "ShownModel", "model_of", "read_live"]

State = Literal["loading", "ready", "leaving"]

_STEP_BYTES = 1 << 20  # smaller changes are not worth a message to a browser
_STEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModel:
    """A model may be loaded twice, to answer and to make vectors; `key` tells which. `expires_in_seconds` is None for
    never, and rounded."""

    key: str
    name: str
    placement: str
    context: int | None
    state: State
    size_bytes: int
    requests: int
    waiting: int
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """`pinned` and `troubles` (why a model failed last) are by name; `budget_bytes` is None where nobody knows."""

    loaded: tuple[ShownModel, ...]
    pinned: frozenset[str]
    troubles: tuple[tuple[str, str], ...]
    budget_bytes: int | None

    @property
    def taken_bytes(self) -> int:
        return sum(model.size_bytes for model in self.loaded)

    def of(self, name: str) -> tuple[ShownModel, ...]:
        return tuple(model for model in self.loaded if model.name == name)

    def trouble(self, name: str) -> str:
        return dict(self.troubles).get(name, "")


def model_of(key: str) -> str:
    """The model's name in a key of the pool."""
    return key.partition(" (")[0]


def read_live(pool: Pool) -> Live:
    """Reads what the processes hold; quick enough for the loop."""
    budget = pool.budget()
    return Live(
        loaded=tuple(map(_loaded, pool.loaded())),
        pinned=frozenset(map(model_of, pool.pinned)),
        troubles=_troubles(pool.last_errors().items()),
        budget_bytes=None if budget is None else _rounded(budget.total),
    )


def _loaded(model: Loaded) -> ShownModel:
    left = model.expires_in_seconds
    return ShownModel(
        key=model.key,
        name=model_of(model.key),
        placement=model.placement.name,
        context=model.placement.settings.context,
        state=model.state,
        size_bytes=_rounded(model.size_bytes),
        requests=model.users,
        waiting=model.waiting,
        expires_in_seconds=None if left is None else round(left / _STEP_SECONDS) * _STEP_SECONDS,
    )


def _troubles(failures: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((model_of(key), reason) for key, reason in failures)


def _rounded(count: int) -> int:
    return round(count / _STEP_BYTES) * _STEP_BYTES

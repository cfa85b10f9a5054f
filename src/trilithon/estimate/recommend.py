"""Which models to try on a board: those of a short table that fit and are fast enough, best published quality first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from trilithon.board.chips import Chip
from trilithon.estimate.answer import SpeedEstimate, Subject, estimates, known_engines
from trilithon.estimate.local import Shift
from trilithon.estimate.sizes import size_named
from trilithon.tables import table_beside

__all__ = ["SYSTEM_BYTES", "TASKS", "CuratedModel", "RecommendedModel", "candidates", "fits", "recommended"]

TASKS = ("chat", "rag", "code", "home")
SYSTEM_BYTES = 600 << 20
"""What the system and the program itself take of a board's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CuratedModel:
    """A row of models_to_recommend.toml."""

    name: str
    pull: str
    licence: str
    languages: str
    tools: bool
    context: int
    tasks: tuple[str, ...]
    quality: float
    benchmark: str


@dataclass(frozen=True, slots=True)
class RecommendedModel:
    """A model, and its estimate with the engine that comes with Trilithon."""

    candidate: CuratedModel
    estimate: SpeedEstimate


@cache
def candidates() -> Mapping[str, CuratedModel]:
    table = table_beside(__file__, "models_to_recommend.toml")
    return {name: CuratedModel(name=name, **row | {"tasks": tuple(row["tasks"])}) for name, row in table.items()}


def fits(row: SpeedEstimate, room: int | None) -> bool | None:
    """Whether the need and the system's part are at most `room` bytes; None where that is not known."""
    return None if room is None else row.memory.total + SYSTEM_BYTES <= room


def _usual(row: SpeedEstimate) -> bool:
    """Whether it is the engine that comes with Trilithon; it runs the GGUF that `pull` names."""
    return bool(known_engines()[row.engine].get("usual"))


def recommended(
    chip: Chip, *, task: str, room: int | None, least: float, context: int, shift: Shift
) -> Sequence[RecommendedModel]:
    """What does `task`, fits into `room` bytes (None: not known) with `context` tokens, and decodes `least` tokens per
    second or more; the best published quality first, then the fastest."""
    chosen = []
    for candidate in candidates().values():
        size = size_named(candidate.name)
        if task not in candidate.tasks or size is None or candidate.context < context:
            continue
        rows = estimates(Subject(reference=candidate.pull, size=size), [chip], context=context, shift=shift)
        able = [row for row in rows if _usual(row) and fits(row, room) is not False and row.decode.value >= least]
        if able:
            chosen.append(RecommendedModel(candidate, max(able, key=lambda row: row.decode.value)))
    return sorted(chosen, key=lambda one: (-one.candidate.quality, -one.estimate.decode.value))

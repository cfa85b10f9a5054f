"""Which models to try on a board: those of a short table that fit and are fast enough, best published quality first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from trilithon.board.chips import Chip
from trilithon.estimate.answer import SpeedEstimate, Subject, estimates, known_engines
from trilithon.estimate.predict import Shift
from trilithon.estimate.sizes import size_named
from trilithon.tables import table_beside

__all__ = [
    *("SYSTEM_BYTES", "TASKS", "CuratedModel", "RecommendedModel"),
    *("candidates", "fits", "is_usual", "ranked", "recommended"),
]

TASKS = ("chat", "rag", "code", "home")
SYSTEM_BYTES = 600 << 20
"""What the system and the program itself take of a board's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CuratedModel:
    """A row of models_to_recommend.toml: `quality` in percent of `benchmark`, None where no figure is confirmed;
    `sources` are addresses."""

    name: str
    pull: str
    licence: str
    languages: str
    tools: bool
    context: int
    tasks: tuple[str, ...]
    sources: tuple[str, ...]
    quality: float | None = None
    benchmark: str | None = None


@dataclass(frozen=True, slots=True)
class RecommendedModel:
    """A model, and its estimate with the engine that comes with Trilithon."""

    candidate: CuratedModel
    estimate: SpeedEstimate


@cache
def candidates() -> Mapping[str, CuratedModel]:
    table = table_beside(__file__, "models_to_recommend.toml")
    models = {}
    for name, row in table["models"].items():
        lists = {"tasks": tuple(row["tasks"]), "sources": tuple(table["sources"][source] for source in row["sources"])}
        models[name] = CuratedModel(name=name, **row | lists)
    return models


def fits(row: SpeedEstimate, room: int | None) -> bool | None:
    """Whether what cannot be dropped and the system's part are at most `room` bytes; None where that is not known."""
    return None if room is None else row.memory.needed + SYSTEM_BYTES <= room


def is_usual(row: SpeedEstimate) -> bool:
    """Whether it is the engine that comes with Trilithon; it runs the GGUF that `pull` names."""
    return bool(known_engines()[row.engine].get("usual"))


def recommended(
    chip: Chip, *, task: str, room: int | None, least: float, context: int, shift: Shift
) -> Sequence[RecommendedModel]:
    """What does `task`, fits into `room` bytes (None: not known) with `context` tokens, and decodes `least` tokens per
    second or more, in the order of `ranked`."""
    chosen = []
    for candidate in candidates().values():
        size = size_named(candidate.name)
        if task not in candidate.tasks or size is None or candidate.context < context:
            continue
        rows = estimates(Subject(reference=candidate.pull, size=size), [chip], context=context, shift=shift)
        able = [row for row in rows if is_usual(row) and fits(row, room) is not False and row.decode.value >= least]
        if able:
            chosen.append(RecommendedModel(candidate, max(able, key=lambda row: row.decode.value)))
    return ranked(chosen)


def ranked(rows: Iterable[RecommendedModel]) -> Sequence[RecommendedModel]:
    """The best published quality first, then the fastest; models without a figure come last."""
    return sorted(rows, key=lambda row: (-(row.candidate.quality or 0.0), -row.estimate.decode.value))

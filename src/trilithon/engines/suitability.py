"""Which placements could run a file on this machine, and why the others cannot: for people who ask before they try."""

from dataclasses import dataclass

from trilithon.board.snapshot import Board
from trilithon.engines.base import Engine, Settings
from trilithon.engines.table import engines
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.memory import MemoryNeed, memory_need
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["Suitability", "memory_at", "what_runs"]

_CONTEXT = 2048
"""The shortest that is of use: what does not fit with it does not fit at all."""
_CONTEXTS = (2048, 8192, 32_768)


@dataclass(frozen=True, slots=True)
class Suitability:
    """`placement` as `bench` takes it; of an engine without a build its name alone. `refusal` is empty where the
    file can run there."""

    placement: str
    refusal: str


def memory_at(file: ModelFile) -> dict[int, MemoryNeed]:
    """By context, as far as the model goes; empty for formats whose need only their engine knows."""
    if file.format != "gguf":
        return {}
    facts = read_gguf(file.path)
    longest = facts.context_train or max(_CONTEXTS)
    contexts = [context for context in _CONTEXTS if context <= longest] or [longest]
    return {context: memory_need(facts, context) for context in contexts}


def what_runs(file: ModelFile, board: Board, configuration: Configuration) -> list[Suitability]:
    """Every engine's word on the file, unit by unit; engines and devices that have to be asked for by name are left
    out. Those that can run it stand first."""
    too_large = _too_large(file, board)
    verdicts = [
        verdict
        for each in engines(configuration)
        if not each.only_when_named
        for verdict in _of_engine(each, file, too_large)
    ]
    return sorted(verdicts, key=lambda verdict: bool(verdict.refusal))


def _of_engine(engine: Engine, file: ModelFile, too_large: str) -> list[Suitability]:
    builds = engine.builds()
    if not builds:
        return [Suitability(engine.name, engine.missing())]
    pairs = [(build, unit) for build in builds for unit in build.units if not build.only_when_named(unit)]
    verdicts = []
    for build, unit in pairs:
        alone = sum(other == unit for _, other in pairs) == 1
        name = f"{engine.name}/{unit}" if alone else f"{engine.name}@{build.name}/{unit}"
        verdicts.append(Suitability(name, engine.refusal(file, build, unit, Settings()) or too_large))
    return verdicts


def _too_large(file: ModelFile, board: Board) -> str:
    """Why this machine's memory is too small for it, whatever runs it; empty where it is not, or is not known."""
    needed = file.size_bytes
    if file.format == "gguf":
        needed = memory_need(read_gguf(file.path), min(_CONTEXT, file.context_train or _CONTEXT)).total_bytes
    if board.memory_bytes is None or needed <= board.memory_bytes:
        return ""
    return (
        f"it needs {format_bytes(needed)} of memory with a context of {_CONTEXT:,}, and this machine has "
        f"{format_bytes(board.memory_bytes)}; take a smaller quantization"
    )

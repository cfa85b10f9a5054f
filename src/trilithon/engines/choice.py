"""Which file of a model a campaign measures: the first that the placements, or any engine here, could run."""

from collections.abc import Sequence
from pathlib import Path

from trilithon.engines.base import Settings
from trilithon.engines.placement_spec import PlacementSpec, parse_placement
from trilithon.engines.table import engine, engines
from trilithon.models.files.model_file import ModelFile
from trilithon.models.store.manifest import StoredFile
from trilithon.models.store.resolve import Suits
from trilithon.settings import Configuration

__all__ = ["suits_placements"]


def suits_placements(placements: Sequence[str], configuration: Configuration) -> Suits:
    """With `placements` as they are spelled: all of them could run it. Without: what is measured by default could."""
    spellings = [half for text in placements for half in _halves(parse_placement(text))]

    def suits(file: StoredFile) -> bool:
        probe = _probe(file)
        if spellings:
            return all(_could_run(spelling, probe, configuration) for spelling in spellings)
        return any(
            not each.refusal(probe, build, unit, Settings())
            for each in engines(configuration)
            if not each.only_when_named
            for build in each.builds()
            for unit in build.units
        )

    return suits


def _halves(spelling: PlacementSpec) -> list[PlacementSpec]:
    return [spelling] if spelling.prefill is None else [spelling.prefill, spelling]


def _could_run(spelling: PlacementSpec, probe: ModelFile, configuration: Configuration) -> bool:
    chosen = engine(spelling.engine, configuration)
    return any(
        not chosen.refusal(probe, build, spelling.unit, Settings())
        for build in chosen.builds()
        if spelling.unit in build.units
    )


def _probe(file: StoredFile) -> ModelFile:
    """What the manifest says of weights, without opening them: enough to tell formats and chips apart."""
    return ModelFile(
        path=Path(file.name),
        format="gguf" if file.format == "gguf" else "rkllm",
        name=file.name,
        architecture="unknown",
        quantization=file.quantization,
        size_bytes=file.size_bytes,
        sha256=file.digest,
        target_platform=file.target_platform or None,
    )

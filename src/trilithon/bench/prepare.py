"""A plan held against this machine: files read, placements resolved, everything refused that can be refused early."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trilithon.bench.plan import Plan, reference_placement, resolve
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Placement
from trilithon.measure.records import PlacementRecord
from trilithon.models.file import ModelFile, read_model_file
from trilithon.models.hashing import Progress
from trilithon.settings import Configuration

__all__ = ["Prepared", "prepare", "record_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan that can run here. `reference` is what quality is held against; it may be none of `placements`."""

    plan: Plan
    board: Board
    placements: tuple[Placement, ...]
    reference: Placement
    configuration: Configuration


def prepare(plan: Plan, configuration: Configuration, progress: Progress | None = None) -> Prepared:
    """Read the files and the machine, and resolve the placements. Raises ModelError and PlacementError."""
    file = read_model_file(plan.model, configuration.cache, progress)
    other = read_model_file(plan.reference, configuration.cache, progress) if plan.reference else None
    board = read_board()
    placements = tuple(resolve(plan, file, board, configuration))
    reference = reference_placement(plan, placements, other or file, board, configuration)
    return Prepared(plan=plan, board=board, placements=placements, reference=reference, configuration=configuration)


def record_of(placement: Placement, board: Board, bandwidth: float | None) -> PlacementRecord:
    """The placement as the store keeps it. `bandwidth` is what its CPUs read, bytes per second."""
    file, build, settings = placement.file, placement.build, asdict(placement.settings)
    settings["options"] = dict(placement.settings.options)
    words = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}))
    return PlacementRecord(
        name=placement.name,
        engine=build.engine,
        build=build.name,
        build_version=build.version,
        unit=placement.unit,
        model=_described(file),
        settings=settings,
        must_match={
            **board.must_match(),
            "build": " ".join(filter(None, (build.engine, build.version, build.fingerprint))),
            "file": file.sha256,
            "settings": words,
        },
        bandwidth_bytes_per_second=bandwidth,
    )


def _described(file: ModelFile) -> Mapping[str, object]:
    return {
        "name": file.name,
        "file": file.path.name,
        "architecture": file.architecture,
        "quantization": file.quantization,
        "size_bytes": file.size_bytes,
        "parameters": file.parameters,
        "bytes_per_token": file.bytes_per_token,
        "sha256": file.sha256,
    }

"""A plan compared with this machine: files read, placements resolved, everything refused that can be refused early."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trilithon.bench.setup import CampaignSetup, reference_placement, resolve, resolve_models
from trilithon.board.snapshot import Board, read_board
from trilithon.board.tuning.pinning import Outcome
from trilithon.engines.base import Placement
from trilithon.errors import ModelError, NotAModel, PlacementError
from trilithon.measure.records import PlacementRecord
from trilithon.models.files.hashing import Progress
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.results.compare import are_other_models
from trilithon.results.simulated import SIMULATED, SOFTWARE, STAND_IN
from trilithon.settings import Configuration

__all__ = ["Prepared", "prepare", "record_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan that can run here. `reference` is what quality is compared with; it may be none of `placements`. With
    several models `references` has that of each file, by its path: files of one model share one. `pinned` says of each
    clock that was to be pinned what came of it."""

    plan: CampaignSetup
    board: Board
    placements: tuple[Placement, ...]
    reference: Placement
    configuration: Configuration
    pinned: tuple[Outcome, ...] = ()
    references: Mapping[Path, Placement] = field(default_factory=dict)

    def reference_of(self, placement: Placement) -> Placement:
        return self.references.get(placement.file.path, self.reference)

    def facts(self) -> dict[str, Any]:
        """The machine as the store keeps it."""
        pinned = {outcome.subject: outcome.state() for outcome in self.pinned}
        return self.board.facts() | ({"pinned": pinned} if pinned else {})


def prepare(
    plan: CampaignSetup, configuration: Configuration, progress: Progress | None = None, pinned: Sequence[Outcome] = ()
) -> Prepared:
    """Read the files and the machine, and resolve the placements; clocks are pinned before. Raises ModelError and
    PlacementError."""
    file = read_model_file(plan.model, configuration.cache, progress)
    other = read_model_file(plan.reference, configuration.cache, progress) if plan.reference else None
    # The same model by the user's word, whatever its files are called: one verdict over all.
    also = [replace(read_model_file(path, configuration.cache, progress), name=file.name) for path in plan.also]
    _refuse_synthetic(file, other)
    for measured in (file, *also, *([other] if other else [])):
        _require_generation(measured)
    _refuse_questions(plan, (file, *also))
    board = read_board()
    if plan.models:
        return _several(plan, file, board, configuration, progress, pinned)
    placements = tuple(resolve(plan, file, board, configuration, also=also))
    reference = reference_placement(plan, placements, other or file, board, configuration, also=() if other else also)
    return Prepared(
        plan=plan,
        board=board,
        placements=placements,
        reference=reference,
        configuration=configuration,
        pinned=tuple(pinned),
    )


def _several(
    plan: CampaignSetup,
    first: ModelFile,
    board: Board,
    configuration: Configuration,
    progress: Progress | None,
    pinned: Sequence[Outcome],
) -> Prepared:
    """Each model on all placements that can run it. Of one model in several quantisations, the largest file on the CPU
    is the reference of all."""
    files = [first, *(read_model_file(path, configuration.cache, progress) for path in plan.models)]
    _refuse_questions(plan, files)
    if len({file.path.name for file in files}) < len(files):
        raise PlacementError("a model is named twice; name each file once")
    for file in files:
        _require_generation(file)
    placements = resolve_models(plan, files, board, configuration)
    references: dict[Path, Placement] = {}
    for family in _families(files):
        best = max(family, key=lambda file: file.size_bytes)
        paths = {file.path for file in family}
        members = [placement for placement in placements if placement.file.path in paths]
        reference = reference_placement(plan, members, best, board, configuration)
        references |= {file.path: reference for file in family}
    return Prepared(
        plan=plan,
        board=board,
        placements=tuple(placements),
        reference=references[first.path],
        configuration=configuration,
        pinned=tuple(pinned),
        references=references,
    )


def _families(files: Sequence[ModelFile]) -> list[list[ModelFile]]:
    """Files of one model together: of the same name and shape, whatever their quantisation."""
    families: list[list[ModelFile]] = []
    for file in files:
        related = next((family for family in families if _is_of_one_model(family[0], file)), None)
        if related is None:
            families.append([file])
        else:
            related.append(file)
    return families


def _is_of_one_model(a: ModelFile, b: ModelFile) -> bool:
    names = [re.sub(rf"[\s._-]*{re.escape(file.quantization or '')}$", "", file.name, flags=re.I) for file in (a, b)]
    alike = names[0].casefold() == names[1].casefold()
    return alike and not a.synthetic and not are_other_models(_described(a), _described(b))


def _require_generation(file: ModelFile) -> None:
    """Raises NotAModel for a model that generates no text: prefill and decode are all that is measured."""
    if file.kind in ("embedding", "reranker"):
        is_what = "an embedding model" if file.kind == "embedding" else "a reranking model"
        raise NotAModel(
            "{name} is {is_what}: it generates no text, so there is no decode to measure; name another model",
            name=file.path.name,
            is_what=is_what,
        )


def _refuse_questions(plan: CampaignSetup, files: Sequence[ModelFile]) -> None:
    for file in files if plan.questions is not None else ():
        if file.synthetic:
            raise ModelError(
                "{name} is synthetic: its weights are random, and so are its answers; leave --questions out",
                name=file.path.name,
            )


def _refuse_synthetic(file: ModelFile, reference: ModelFile | None) -> None:
    """Its speed can be measured all the same, as long as nobody asks for its quality by name."""
    for weights in (file, reference) if reference is not None else ():
        if weights.synthetic:
            raise ModelError(
                "{name} is synthetic: its weights are random, and quality cannot be compared with another "
                "file's; leave --reference out to measure its speed",
                name=weights.path.name,
            )


def record_of(
    placement: Placement, board: Board, bandwidth: float | None, pinned: Sequence[Outcome] = ()
) -> PlacementRecord:
    """The placement as the store keeps it. `bandwidth` is what its CPUs read, bytes per second."""
    file, build, settings = placement.file, placement.build, asdict(placement.settings)
    settings["options"] = dict(placement.settings.options)
    del settings["task"]  # never measured; results from before it was there stay comparable
    if placement.unit == "server":  # which has settings that nobody here knows
        settings = {"through": "HTTP", "options": dict(placement.settings.options)}
    words = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}))
    prefill = record_of(placement.prefill, board, None) if placement.prefill else None
    at_top = ", ".join(outcome.subject for outcome in pinned if outcome.pinned)
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
            **({"pinned": at_top} if at_top else {}),
            **_simulated(placement),
            "build": " ".join(filter(None, (build.engine, build.version, build.fingerprint))),
            "file": file.sha256 or file.path.name,
            "settings": words,
            **({f"prefill {name}": prefill.must_match[name] for name in ("build", "settings")} if prefill else {}),
        },
        bandwidth_bytes_per_second=bandwidth,
    )


def _simulated(placement: Placement) -> dict[str, str]:
    halves = [placement, *([placement.prefill] if placement.prefill else [])]
    if any(half.build.simulated for half in halves):
        return {SIMULATED: STAND_IN}
    return {SIMULATED: SOFTWARE} if any(half.build.only_when_named(half.unit) for half in halves) else {}


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
        **({"synthetic": True} if file.synthetic else {}),
    }

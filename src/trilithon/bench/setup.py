"""What a campaign will measure, as plain data that a later `--resume` can read, and the placements it means."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from trilithon.bench.workloads import tokens_needed, tokens_of_question
from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, nothing_runs, place, usable_here
from trilithon.errors import PlacementError
from trilithon.measure.questions import QuestionSet
from trilithon.measure.records import Test
from trilithon.models.files.model_file import ModelFile
from trilithon.results.store.codec import from_json
from trilithon.settings import Configuration

__all__ = ["CampaignSetup", "in_turn", "reference_placement", "resolve", "resolve_models"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignSetup:
    """A campaign before it runs. `placements` are spelled; empty means every one that can run the file.

    `models` are measured beside `model`, in the same rounds. `also` are the same model's files in other forms (.rkllm):
    each placement takes the first that its engine runs.
    `variants` are the settings to try on each (one empty mapping: as they are). `rounds` is the exact number of
    rounds, or None to go on until the intervals are narrow or `budget_seconds` are spent. `reference` is the file
    to hold quality against, the model itself when None. `pin_clocks` takes all clocks to their top meanwhile;
    `keep_awake` switches the CPUs' deep idle states off as well.
    `name` is what the user calls the model; empty for a file. `questions` are put to each placement once, at the end.
    `report` is the folder for the report, where the user named one. With `test_seconds` a test at a depth that would
    take longer, or that does not fit the context, is left out."""

    model: Path
    tests: tuple[Test, ...]
    models: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()
    placements: tuple[str, ...] = ()
    variants: tuple[Mapping[str, str], ...] = field(default=({},))
    rounds: int | None = None
    budget_seconds: float | None = None
    reference: Path | None = None
    quality: bool = True
    pin_clocks: bool = False
    keep_awake: bool = False
    name: str = ""
    questions: QuestionSet | None = None
    report: Path | None = None
    test_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "model": str(self.model),
            "models": [str(path) for path in self.models],
            "also": [str(path) for path in self.also],
            "reference": str(self.reference) if self.reference else None,
            "report": str(self.report) if self.report else None,
            "variants": [dict(variant) for variant in self.variants],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CampaignSetup":
        known = {name: data[name] for name in (f.name for f in fields(cls)) if name in data}
        return cls(
            **known
            | {
                "model": Path(data["model"]),
                "models": tuple(map(Path, data.get("models", ()))),
                "also": tuple(map(Path, data.get("also", ()))),
                "reference": Path(data["reference"]) if data.get("reference") else None,
                "report": Path(data["report"]) if data.get("report") else None,
                "tests": tuple(Test(**test) for test in data["tests"]),
                "placements": tuple(data["placements"]),
                "variants": tuple(data["variants"]),
                "questions": from_json(QuestionSet, data["questions"]) if data.get("questions") else None,
            }
        )


def resolve(
    plan: CampaignSetup, file: ModelFile, board: Board, configuration: Configuration, *, also: Sequence[ModelFile] = ()
) -> list[Placement]:
    """The placements that the plan means here, each with its own name. `also` are the files of `plan.also`.

    Raises PlacementError for one that was spelled and cannot run, or when none can."""
    spellings = [parse_placement(text) for text in plan.placements]
    if len({spelling.name for spelling in spellings}) < len(spellings):
        raise PlacementError("a placement is named twice; distinguish them by @BUILD or by a setting")
    files, need = (file, *also), replace(_need(plan), names=(plan.name,) if plan.name else ())
    placements = [
        place(spelling, variant, need, files, board, configuration)
        for spelling in spellings or usable_here(files, configuration)
        for variant in plan.variants
    ]
    # A setting of its own outweighs the plan's, so that several variants may come to one and the same placement.
    placements = list({placement.name: placement for placement in placements}.values())
    if not placements:
        raise nothing_runs(file, configuration)
    return placements


def resolve_models(
    plan: CampaignSetup, files: Sequence[ModelFile], board: Board, configuration: Configuration
) -> list[Placement]:
    """Those of several models, each named after its file as well. A placement that was spelled is left out where it
    cannot run a file; raises PlacementError where it can run none, for a file that nothing runs, and where the
    model on a server is named, or is one for two files."""
    words = plan.placements or ("",)
    _refuse_named_models(plan)
    placements: list[Placement] = []
    errors: dict[tuple[str, Path], PlacementError] = {}
    for file in files:
        for word in words:
            try:
                alone = replace(plan, placements=(word,) if word else (), name=plan.name if file is files[0] else "")
                placed = resolve(alone, file, board, configuration)
            except PlacementError as error:
                errors[word, file.path] = error
            else:
                placements += [replace(one, name=f"{one.name} with {file.path.name}") for one in placed]
    for word in words:
        if all((word, file.path) in errors for file in files):
            raise errors[word, files[0].path]
    for file in files:
        if all((word, file.path) in errors for word in words):
            raise errors[words[0], file.path]
    _refuse_one_for_two(placements)
    return list({placement.name: placement for placement in placements}.values())


def _refuse_named_models(plan: CampaignSetup) -> None:
    for spelling in map(parse_placement, plan.placements):
        if spelling.unit == "server" and "model" in spelling.options:
            raise PlacementError(
                "placement {text}: of a server, several models are found by their names; leave #MODEL out",
                text=spelling.text,
            )


def _refuse_one_for_two(placements: Sequence[Placement]) -> None:
    for one, other in combinations([placement for placement in placements if placement.unit == "server"], 2):
        if one.settings.options == other.settings.options and one.file.path != other.file.path:
            raise PlacementError(
                "{name} and {other} are one model on the server; measure only one of them there",
                name=one.name,
                other=other.name,
            )


def reference_placement(
    plan: CampaignSetup,
    placements: Sequence[Placement],
    file: ModelFile,
    board: Board,
    configuration: Configuration,
    *,
    also: Sequence[ModelFile] = (),
) -> Placement:
    """What quality is compared with: `file`, or the first of `also`, on the CPU. One of `placements` where it is among
    them, else another."""
    files = (file, *also)
    for placement in placements:
        if placement.unit == "cpu" and placement.file in files and placement.prefill is None:
            return placement
    for spelling in usable_here(files, configuration):
        if spelling.unit == "cpu":
            reference = place(spelling, {}, _need(plan), files, board, configuration)
            return replace(reference, name=f"{spelling.text} with {reference.file.path.name}")
    if placements[0].file in files:
        return placements[0]
    raise PlacementError("no CPU placement here can run {name}, which --reference names", name=file.path.name)


def _need(plan: CampaignSetup) -> Need:
    # Not a question's: an answer that fills the context ends there.
    exact = [test for test in plan.tests if test.kind in ("pp", "tg", "pg")]
    exact = [test for test in exact if plan.test_seconds is None or not test.depth]
    longest = max(map(tokens_needed, exact), default=0)
    depths = [test.depth for test in plan.tests if test.depth > 0]
    need = Need(least_context=longest, asker="the tests", fix="make -p, -n or -d smaller")
    answers = map(tokens_of_question, plan.questions.questions if plan.questions else ())
    need = replace(need, context=max([need.context, *map(tokens_needed, plan.tests), *answers]))
    return replace(need, shortest_prefix=min(depths)) if depths else need


def in_turn(placements: Sequence[Placement], round: int) -> list[Placement]:  # noqa: A002 - the measuring term
    """The order of one round: every other round runs backwards, so that no placement always goes first."""
    return list(placements) if round % 2 == 0 else list(reversed(placements))

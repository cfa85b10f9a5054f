"""What a campaign will measure, as plain data that a later `--resume` can read, and the placements it means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trilithon.bench.workloads import tokens_needed
from trilithon.board.snapshot import Board
from trilithon.engines.base import Build, Engine, Placement, Settings, Unit
from trilithon.engines.table import engine, engines
from trilithon.errors import PlacementError
from trilithon.measure.records import Test
from trilithon.models.file import ModelFile
from trilithon.settings import Configuration

__all__ = ["Plan", "Spelling", "in_turn", "parse_placement", "reference_placement", "resolve"]

_SPELLING = re.compile(r"(?P<engine>[\w.-]+)(?:@(?P<build>[\w.-]+))?/(?P<unit>cpu|gpu|npu)(?::(?P<options>.+))?")
# What decides the form of a KV cache, and how many there are.
_SAME_IN_BOTH = ("kv_type_k", "kv_type_v", "flash_attention", "context", "slots")
# Between the two halves of a handover; an option's value may hold a plus sign.
_AND = re.compile(r"\+(?=[\w.-]+(?:@[\w.-]+)?/(?:cpu|gpu|npu)(?:[:+]|$))")
_CONTEXT = 4096
# Options of a spelled placement that turn settings; any other word is the engine's own.
_SHORT = {
    "t": "threads",
    "threads": "threads",
    "ub": "micro_batch",
    "b": "batch",
    "c": "context",
    "ctk": "kv_type_k",
    "ctv": "kv_type_v",
    "fa": "flash_attention",
    "np": "slots",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A campaign before it runs. `placements` are spelled; empty means every one that can run the file.

    `also` are the same model's files in other forms (.rkllm): each placement takes the first that its engine runs.
    `variants` are the settings to try on each (one empty mapping: as they are). `rounds` is the exact number of
    rounds, or None to go on until the intervals are narrow or `budget_seconds` are spent. `reference` is the file
    to hold quality against, the model itself when None. `pin_clocks` takes all clocks to their top meanwhile;
    `keep_awake` switches the CPUs' deep idle states off as well.
    """

    model: Path
    tests: tuple[Test, ...]
    also: tuple[Path, ...] = ()
    placements: tuple[str, ...] = ()
    variants: tuple[Mapping[str, str], ...] = field(default=({},))
    rounds: int | None = None
    budget_seconds: float | None = None
    reference: Path | None = None
    quality: bool = True
    pin_clocks: bool = False
    keep_awake: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "model": str(self.model),
            "also": [str(path) for path in self.also],
            "reference": str(self.reference) if self.reference else None,
            "variants": [dict(variant) for variant in self.variants],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        known = {name: data[name] for name in (f.name for f in fields(cls)) if name in data}
        return cls(
            **known
            | {
                "model": Path(data["model"]),
                "also": tuple(map(Path, data.get("also", ()))),
                "reference": Path(data["reference"]) if data.get("reference") else None,
                "tests": tuple(Test(**test) for test in data["tests"]),
                "placements": tuple(data["placements"]),
                "variants": tuple(data["variants"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Spelling:
    """A placement as a user writes it: `ENGINE[@BUILD]/UNIT[:NAME=VALUE,...]`; with `prefill` it is the second
    half of `PREFILL+DECODE`."""

    text: str
    engine: str
    build: str | None
    unit: Unit
    options: Mapping[str, str]
    prefill: "Spelling | None" = None

    @property
    def name(self) -> str:
        return f"{self.prefill.text}+{self.text}" if self.prefill else self.text


def parse_placement(text: str) -> Spelling:
    """Raises PlacementError for what is not of that form."""
    halves = [_parse_half(half) for half in _AND.split(text.strip())]
    if len(halves) > 2:
        raise PlacementError(f"placement {text}: a handover has two halves, PREFILL+DECODE")
    return halves[0] if len(halves) == 1 else replace(halves[1], prefill=halves[0])


def _parse_half(text: str) -> Spelling:
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        raise PlacementError(f"placement {text}: write ENGINE/UNIT, for example llama.cpp/cpu or llama.cpp/cpu:t=4")
    options: dict[str, str] = {}
    for word in (match["options"] or "").split(","):
        name, equals, value = word.partition("=")
        if word and not equals:
            raise PlacementError(f"placement {text}: write {name}=VALUE after the colon")
        if word and _SHORT.get(name.strip(), name.strip()) in {_SHORT.get(known, known) for known in options}:
            raise PlacementError(f"placement {text}: {name.strip()} is given twice")
        if word:
            options[name.strip()] = value.strip()
    unit: Any = match["unit"]
    return Spelling(text.strip(), match["engine"], match["build"], unit, options)


def resolve(
    plan: Plan, file: ModelFile, board: Board, configuration: Configuration, *, also: Sequence[ModelFile] = ()
) -> list[Placement]:
    """The placements that the plan means here, each with its own name. `also` are the files of `plan.also`.

    Raises PlacementError for one that was spelled and cannot run, or when none can.
    """
    spellings = [parse_placement(text) for text in plan.placements]
    if len({spelling.name for spelling in spellings}) < len(spellings):
        raise PlacementError("a placement is named twice; tell them apart by @BUILD or by a setting")
    files = (file, *also)
    found = [
        _placement(spelling, variant, plan.tests, files, board, configuration)
        for spelling in spellings or _usable_here(files, configuration)
        for variant in plan.variants
    ]
    # A setting of its own outweighs the plan's, so that several variants may come to one and the same placement.
    found = list({placement.name: placement for placement in found}.values())
    if not found:
        reasons = "; ".join(missing for each in engines(configuration) if (missing := each.missing()))
        raise PlacementError(f"nothing here can run {file.path.name}: {reasons or 'see trilithon doctor'}")
    return found


def reference_placement(
    plan: Plan,
    placements: Sequence[Placement],
    file: ModelFile,
    board: Board,
    configuration: Configuration,
    *,
    also: Sequence[ModelFile] = (),
) -> Placement:
    """What quality is held against: `file`, or the first of `also`, on the CPU. One of `placements` where it is among
    them, else another."""
    files = (file, *also)
    for placement in placements:
        if placement.unit == "cpu" and placement.file in files and placement.prefill is None:
            return placement
    for spelling in _usable_here(files, configuration):
        if spelling.unit == "cpu":
            found = _placement(spelling, {}, plan.tests, files, board, configuration)
            return replace(found, name=f"{spelling.text} with {found.file.path.name}")
    if placements[0].file in files:
        return placements[0]
    raise PlacementError(f"no CPU placement here can run {file.path.name}, which --reference names")


def _usable_here(files: Sequence[ModelFile], configuration: Configuration) -> list[Spelling]:
    spellings: list[Spelling] = []
    for each in engines(configuration):
        if each.only_when_named:
            continue
        pairs = [
            (build, unit)
            for build in each.builds()
            for unit in build.units
            if not build.only_when_named(unit)
            and any(not each.refusal(file, build, unit, Settings()) for file in files)
        ]
        for build, unit in pairs:
            alone = sum(other == unit for _, other in pairs) == 1
            name = f"{each.name}/{unit}" if alone else f"{each.name}@{build.name}/{unit}"
            spellings.append(Spelling(name, each.name, build.name, unit, {}))
    return spellings


def _placement(
    spelling: Spelling,
    variant: Mapping[str, str],
    tests: Sequence[Test],
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    if spelling.prefill is not None:
        return _handover(spelling, spelling.prefill, variant, tests, files, board, configuration)
    chosen = engine(spelling.engine, configuration)
    build = _build(spelling, chosen)
    refusals = []
    for file in files:
        settings = _settings(spelling, {**variant, **spelling.options}, tests, file, board)
        refusal = chosen.refusal(file, build, spelling.unit, settings)
        if not refusal:
            break
        refusals.append(refusal)
    else:
        raise PlacementError(f"placement {spelling.text}: {'; '.join(refusals)}")
    own = {_SHORT.get(name, name) for name in spelling.options}
    suffix = ",".join(f"{name}={value}" for name, value in variant.items() if _SHORT[name] not in own)
    name = spelling.text + (("," if spelling.options else ":") + suffix if suffix else "")
    return Placement(name=name, file=file, build=build, unit=spelling.unit, settings=settings)


def _handover(
    spelling: Spelling,
    prefill: Spelling,
    variant: Mapping[str, str],
    tests: Sequence[Test],
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    """Both halves keep their KV cache in the same form, or the one could not read the other's: what the second half
    leaves open, it takes from the first."""
    first = _placement(prefill, variant, tests, files, board, configuration)
    shared = {name: value for name, value in prefill.options.items() if _SHORT.get(name) in _SAME_IN_BOTH}
    own = {_SHORT.get(name, name) for name in spelling.options}
    options = {name: value for name, value in shared.items() if _SHORT[name] not in own} | dict(spelling.options)
    second = _placement(replace(spelling, prefill=None, options=options), variant, tests, files, board, configuration)
    if first.file is not second.file:
        names = f"{first.file.path.name} and {second.file.path.name}"
        raise PlacementError(f"placement {spelling.name}: one half reads no KV cache of the other's file ({names})")
    for name in _SAME_IN_BOTH:
        here, there = getattr(first.settings, name), getattr(second.settings, name)
        if here != there:
            raise PlacementError(f"placement {spelling.name}: {name} is {here} in one half and {there} in the other")
    windowed = second.file.sliding_window is not None
    first = replace(first, settings=replace(first.settings, full_window_cache=windowed))
    settings = replace(second.settings, full_window_cache=windowed)
    return replace(second, name=f"{first.name}+{second.name}", settings=settings, prefill=first)


def _build(spelling: Spelling, chosen: Engine) -> Build:
    builds = [build for build in chosen.builds() if spelling.unit in build.units]
    builds.sort(key=lambda build: build.only_when_named(spelling.unit))  # what computes in software comes last
    if spelling.build is not None:
        builds = [build for build in builds if build.name == spelling.build]
    if builds:
        return builds[0]
    have = ", ".join(f"{chosen.name}@{b.name}/{unit}" for b in chosen.builds() for unit in b.units)
    raise PlacementError(
        f"placement {spelling.text}: {chosen.missing() or f'there is no such build; there are {have}'}"
    )


def _settings(
    spelling: Spelling, words: Mapping[str, str], tests: Sequence[Test], file: ModelFile, board: Board
) -> Settings:
    known = {_SHORT[name]: value for name, value in words.items() if name in _SHORT}
    own = tuple((name, value) for name, value in words.items() if name not in _SHORT)
    numbers = {}
    for name in ("threads", "micro_batch", "batch", "context", "slots"):
        if name in known:
            text = known.pop(name)
            if not text.isdecimal() or int(text) < 1:
                raise PlacementError(f"placement {spelling.text}: {name} is a number from 1, not {text}")
            numbers[name] = int(text)
    if known.get("flash_attention", "auto") not in ("auto", "on", "off"):
        raise PlacementError(f"placement {spelling.text}: flash attention is on, off or auto")
    settings = replace(Settings(options=own), **known, **numbers)  # type: ignore[arg-type] # names come from _SHORT
    return _completed(settings, tests, file, board)


def _completed(settings: Settings, tests: Sequence[Test], file: ModelFile, board: Board) -> Settings:
    """Fill in what the board decides: its fast cores, and a context that the tests fit into."""
    little = len(board.big_cpus) < board.physical_cores
    needed = max([_CONTEXT, *(tokens_needed(test) for test in tests)])
    if file.context_train and not settings.context:
        # Not a question's: an answer that fills the context ends there.
        longest = max((tokens_needed(test) for test in tests if test.kind in ("pp", "tg", "pg")), default=0)
        if longest > file.context_train:
            raise PlacementError(
                f"the tests need a context of {longest} tokens and {file.path.name} was trained for "
                f"{file.context_train}; make -p, -n or -d smaller"
            )
        needed = min(needed, file.context_train)
    return replace(
        settings,
        threads=settings.threads or len(board.big_cpus),
        cpus=board.big_cpus if little else None,
        context=settings.context or needed,
        full_window_cache=any(0 < test.depth <= (file.sliding_window or 0) for test in tests),
    )


def in_turn(placements: Sequence[Placement], round: int) -> list[Placement]:  # noqa: A002 - the measuring term
    """The order of one round: every other round runs backwards, so that no placement always goes first."""
    return list(placements) if round % 2 == 0 else list(reversed(placements))

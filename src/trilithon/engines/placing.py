"""From a spelled placement to one that can be opened here: a build, a file that it runs, settings that fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trilithon.board.snapshot import Board
from trilithon.engines.base import Build, Engine, Placement, Settings
from trilithon.engines.placement_spec import SHORT_NAMES, PlacementSpec
from trilithon.engines.speculation import refusal_of_speculation
from trilithon.engines.table import engine, engines
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration

__all__ = ["Need", "place", "usable_here"]

# What decides the form of a KV cache, and how many there are.
_SAME_IN_BOTH = ("kv_type_k", "kv_type_v", "flash_attention", "context", "slots")
_NO_PREFIX = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is asked of a placement that has no context of its own: `context` tokens, or as many as the model was
    trained for, but not fewer than `least_context`; `asker` and `fix` are for the message where that is too many.
    `shortest_prefix` is the shortest prompt that is to be taken up again: with a sliding window longer than that, the
    KV cache is kept in full."""

    context: int = 4096
    least_context: int = 0
    shortest_prefix: int = _NO_PREFIX
    asker: str = "these requests"
    fix: str = "ask for less"


def usable_here(files: Sequence[ModelFile], configuration: Configuration) -> list[PlacementSpec]:
    """Every way to run one of the files that nobody has to ask for by name."""
    spellings: list[PlacementSpec] = []
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
            spellings.append(PlacementSpec(name, each.name, build.name, unit, {}))
    return spellings


def place(
    spelling: PlacementSpec,
    variant: Mapping[str, str],
    need: Need,
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    if spelling.prefill is not None:
        return _handover(spelling, spelling.prefill, variant, need, files, board, configuration)
    chosen = engine(spelling.engine, configuration)
    build = _build(spelling, chosen)
    refusals = []
    for file in files:
        settings = _settings(spelling, {**variant, **spelling.options}, need, file, board)
        refusal = refusal_of_speculation(file, build, settings)
        refusal = refusal or chosen.refusal(file, build, spelling.unit, settings)
        if not refusal:
            break
        refusals.append(refusal)
    else:
        raise PlacementError(f"placement {spelling.text}: {'; '.join(refusals)}")
    own = {SHORT_NAMES.get(name, name) for name in spelling.options}
    suffix = ",".join(f"{name}={value}" for name, value in variant.items() if SHORT_NAMES[name] not in own)
    name = spelling.text + (("," if spelling.options else ":") + suffix if suffix else "")
    return Placement(name=name, file=file, build=build, unit=spelling.unit, settings=settings)


def _handover(
    spelling: PlacementSpec,
    prefill: PlacementSpec,
    variant: Mapping[str, str],
    need: Need,
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    """Both halves keep their KV cache in the same form, or the one could not read the other's: what the second half
    leaves open, it takes from the first."""
    first = place(prefill, variant, need, files, board, configuration)
    shared = {name: value for name, value in prefill.options.items() if SHORT_NAMES.get(name) in _SAME_IN_BOTH}
    own = {SHORT_NAMES.get(name, name) for name in spelling.options}
    options = {name: value for name, value in shared.items() if SHORT_NAMES[name] not in own} | dict(spelling.options)
    second = place(replace(spelling, prefill=None, options=options), variant, need, files, board, configuration)
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


def _build(spelling: PlacementSpec, chosen: Engine) -> Build:
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


def _settings(spelling: PlacementSpec, words: Mapping[str, str], need: Need, file: ModelFile, board: Board) -> Settings:
    known = {SHORT_NAMES[name]: value for name, value in words.items() if name in SHORT_NAMES}
    own = tuple((name, value) for name, value in words.items() if name not in SHORT_NAMES)
    numbers = {}
    for name in ("threads", "micro_batch", "batch", "context", "slots"):
        if name in known:
            text = known.pop(name)
            if not text.isdecimal() or int(text) < 1:
                raise PlacementError(f"placement {spelling.text}: {name} is a number from 1, not {text}")
            numbers[name] = int(text)
    if known.get("flash_attention", "auto") not in ("auto", "on", "off"):
        raise PlacementError(f"placement {spelling.text}: flash attention is on, off or auto")
    settings = replace(Settings(options=own), **known, **numbers)  # type: ignore[arg-type] # names come from SHORT_NAMES
    return _completed(settings, need, file, board)


def _completed(settings: Settings, need: Need, file: ModelFile, board: Board) -> Settings:
    """Fill in what the board decides: its fast cores, and a context that fits what is asked."""
    little = len(board.big_cpus) < board.physical_cores
    context = need.context
    if file.context_train and not settings.context:
        if need.least_context > file.context_train:
            raise PlacementError(
                f"{need.asker} need a context of {need.least_context} tokens and {file.path.name} was trained for "
                f"{file.context_train}; {need.fix}"
            )
        context = min(context, file.context_train)
    return replace(
        settings,
        threads=settings.threads or len(board.big_cpus),
        cpus=board.big_cpus if little else None,
        context=settings.context or context,
        full_window_cache=file.sliding_window is not None and need.shortest_prefix <= file.sliding_window,
    )

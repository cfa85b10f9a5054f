"""Which placements run a file here: all of them, the ones that the user named, and the file to take for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.board.chips import platform_of
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import format_cpu_list, parse_cpu_list
from trilithon.engines.base import Build, Engine, Placement, Settings, Unit
from trilithon.engines.placement_spec import SHORT_NAMES, PlacementSpec, parse_placement
from trilithon.engines.remote.placing import place_server
from trilithon.engines.speculation import refusal_of_speculation
from trilithon.engines.table import engine, engines
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.models.fetch.choose import Target
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.memory import memory_need
from trilithon.models.files.model_file import ModelFile
from trilithon.models.names import Reference, Repository
from trilithon.models.store.manifest import StoredFile
from trilithon.models.store.resolve import Suits
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives
from trilithon.units import format_bytes

__all__ = [
    "Need",
    "Suitability",
    "builds_of",
    "download_target",
    "has_to_be_named",
    "nothing_runs",
    "place",
    "refuse_server",
    "suits_placements",
    "usable_here",
    "what_runs",
]

# Settings that decide the form of a KV cache, and the number of caches.
_CACHE_SETTINGS = ("kv_type_k", "kv_type_v", "flash_attention", "context", "slots")
_NO_PREFIX = 1 << 62
_LEAST_CONTEXT = 2048  # tokens; a model that does not fit with a shorter one is of no use


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The context of a placement that sets none itself: `context` tokens, or as many as the model was trained for, but
    at least `least_context`. `asker` and `fix` are for the error where the model was trained for less.

    `names` are what the user calls the model, for a server that has several.

    `shortest_prefix` is the length of the shortest prompt of which the KV cache is used again: models with a longer
    sliding window keep the cache of all layers in full."""

    context: int = 4096
    least_context: int = 0
    shortest_prefix: int = _NO_PREFIX
    asker: str = "these requests"
    fix: str = "ask for less"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suitability:
    """`placement` as `bench` takes it; of an engine without a build its name alone. `refusal` is empty where the
    file can run there."""

    placement: str
    refusal: str


def usable_here(files: Sequence[ModelFile] | None, configuration: Configuration) -> list[PlacementSpec]:
    """Every placement that runs one of the files (None: any file), without those that have to be named by the user."""
    specs: list[PlacementSpec] = []
    for maker in _default_engines(configuration):
        runs = [
            (build, unit)
            for build, unit in _default_units(maker.builds())
            if files is None or any(not maker.refusal(file, build, unit, Settings()) for file in files)
        ]
        specs += [
            PlacementSpec(text, maker.name, build.name, unit, {})
            for (build, unit), text in zip(runs, _texts(maker, runs), strict=True)
        ]
    return specs


def what_runs(file: ModelFile, board: Board, configuration: Configuration) -> list[Suitability]:
    """Whether each placement can run the file, and why not, without those that have to be named by the user. Those
    that can run it come first."""
    too_large, verdicts = _too_large(file, board), []
    for maker in _default_engines(configuration):
        units = _default_units(maker.builds())
        if maker.missing():
            verdicts.append(Suitability(maker.name, maker.missing()))
        for (build, unit), text in zip(units, _texts(maker, units), strict=True):
            verdicts.append(Suitability(text, maker.refusal(file, build, unit, Settings()) or too_large))
    return sorted(verdicts, key=lambda verdict: bool(verdict.refusal))


def suits_placements(placements: Sequence[str], configuration: Configuration) -> Suits:
    """Chooses among the files of a model: those that all of `placements` could run, or without any, those that a
    placement here could run. Raises PlacementError for a placement that is malformed, or of an unknown engine."""
    halves = [half for text in placements for half in _halves(parse_placement(text))]

    def suits(stored: StoredFile) -> bool:
        file = _unopened(stored)
        if not halves:
            return bool(usable_here([file], configuration))
        return all(_could_run(half, file, configuration) for half in halves)

    return suits


def download_target(
    reference: Reference, board: Board, configuration: Configuration, chip: str | None = None
) -> Target:
    """Which of a repository's files to download: for this board, or for another `chip`, whose board's memory is not
    known."""
    quantization = reference.choice if isinstance(reference, Repository) else ""
    if chip is not None and platform_of(chip) != platform_of(board.chip):
        return Target(chip=chip, quantization=quantization, chip_by_name=True)
    npu_gguf = isinstance(reference, Repository) and board.npu is not None and _npu_takes_gguf(configuration)
    return Target(chip=board.chip, memory_bytes=board.usable_memory_bytes, npu_gguf=npu_gguf, quantization=quantization)


def nothing_runs(file: ModelFile, configuration: Configuration) -> PlacementError:
    """The error for a file that no placement here runs: what is missing, and how to get it."""
    reasons = "; ".join(missing for maker in engines(configuration) if (missing := maker.missing()))
    return PlacementError(
        "nothing here can run {name}: {reasons}", name=file.path.name, reasons=reasons or "see trilithon doctor"
    )


def builds_of(spec: PlacementSpec, configuration: Configuration) -> list[Build]:
    """The build that runs it, of a handover those of both halves. Raises PlacementError where there is none."""
    return [_build(half, engine(half.engine, configuration)) for half in _halves(spec)]


def refuse_server(spec: PlacementSpec) -> None:
    """Raises PlacementError for the address of a server: `trilithon serve` would only pass requests on to it, without
    its own limits, checks and fallbacks, and prompts would leave this machine by a plan that nobody sees."""
    if spec.unit == "server":
        raise PlacementError(
            "placement {text}: a server at an address can be measured, and not served from; "
            "name an engine of this machine, for example llama.cpp/cpu",
            text=spec.text,
        )


def has_to_be_named(spec: PlacementSpec, configuration: Configuration) -> bool:
    """Whether it is used only where the user names it, for its engine or its device. Raises PlacementError."""
    halves = zip(_halves(spec), builds_of(spec, configuration), strict=True)
    return any(
        engine(half.engine, configuration).only_when_named or build.only_when_named(half.unit) for half, build in halves
    )


def _default_engines(configuration: Configuration) -> list[Engine]:
    return [maker for maker in engines(configuration) if not maker.only_when_named]


def _default_units(builds: Sequence[Build]) -> list[tuple[Build, Unit]]:
    return [(build, unit) for build in builds for unit in build.units if not build.only_when_named(unit)]


def _texts(maker: Engine, units: Sequence[tuple[Build, Unit]]) -> list[str]:
    """`ENGINE/UNIT`, or `ENGINE@BUILD/UNIT` where several builds have the unit."""
    counts = Counter(unit for _, unit in units)
    return [
        f"{maker.name}@{build.name}/{unit}" if counts[unit] > 1 else f"{maker.name}/{unit}" for build, unit in units
    ]


def _halves(spec: PlacementSpec) -> list[PlacementSpec]:
    return [spec] if spec.prefill is None else [spec.prefill, spec]


def _could_run(spec: PlacementSpec, file: ModelFile, configuration: Configuration) -> bool:
    if spec.unit == "server":
        return True  # its files are its own
    maker = engine(spec.engine, configuration)
    builds = [build for build in maker.builds() if spec.unit in build.units]
    return any(not maker.refusal(file, build, spec.unit, Settings()) for build in builds)


def _unopened(stored: StoredFile) -> ModelFile:
    """The file by its manifest alone: enough to tell formats and chips apart."""
    return ModelFile(
        path=Path(stored.name),
        format="gguf" if stored.format == "gguf" else "rkllm",
        name=stored.name,
        architecture="unknown",
        quantization=stored.quantization,
        size_bytes=stored.size_bytes,
        sha256=stored.digest,
        target_platform=stored.target_platform or None,
    )


def _npu_takes_gguf(configuration: Configuration) -> bool:
    """Whether an engine here computes a GGUF file in 8 bits on the NPU."""
    stored = StoredFile(
        role="weights", digest="0" * 64, size_bytes=0, name="model.gguf", format="gguf", quantization="Q8_0"
    )
    return any(spec.unit == "npu" for spec in usable_here([_unopened(stored)], configuration))


def _too_large(file: ModelFile, board: Board) -> str:
    """Why this machine has too little memory for the file on any unit; empty where it has enough, or is not known."""
    if board.usable_memory_bytes is None:
        return ""
    needed = file.size_bytes
    if file.format == "gguf":
        context = min(_LEAST_CONTEXT, file.context_train or _LEAST_CONTEXT)
        needed = memory_need(read_gguf(file.path), context).total_bytes
    if needed <= board.usable_memory_bytes:
        return ""
    return (
        f"it needs {format_bytes(needed)} of memory with a context of {_LEAST_CONTEXT:,}, and this machine has "
        f"{format_bytes(board.usable_memory_bytes)}; take a smaller quantization"
    )


def place(
    spec: PlacementSpec,
    variant: Mapping[str, str],
    need: Need,
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    """The placement of `spec` here, with the first of `files` that it runs. `variant` are settings of the campaign;
    those in `spec` take precedence. Raises PlacementError."""
    if spec.prefill is not None:
        return _handover(spec, spec.prefill, variant, need, files, board, configuration)
    if spec.unit == "server":
        if variant:
            raise PlacementError(
                "placement {text}: settings of a server are set where it is started; "
                "give -t, -b, -ub, -ctk, -ctv and -fa to the other placements instead, as in llama.cpp/cpu:t=4",
                text=spec.text,
            )
        # The file's name before that of the model, which its quantisations share.
        names = (*need.names, files[0].path.name, files[0].name)
        return place_server(spec.text, spec.options, names, files[0], max(need.context, need.least_context))
    maker = engine(spec.engine, configuration)
    build = _build(spec, maker)
    refusals = []
    for file in files:
        settings = _settings(spec, {**variant, **spec.options}, need, file, board)
        refusal = refusal_of_speculation(file, build, settings)
        refusal = refusal or maker.refusal(file, build, spec.unit, settings)
        if not refusal:
            break
        refusals.append(refusal)
    else:
        raise PlacementError("placement {text}: {names}", text=spec.text, names="; ".join(refusals))
    named = {SHORT_NAMES.get(name, name) for name in spec.options}
    suffix = ",".join(f"{name}={value}" for name, value in variant.items() if SHORT_NAMES[name] not in named)
    name = spec.text + (("," if spec.options else ":") + suffix if suffix else "")
    return Placement(name=name, file=file, build=build, unit=spec.unit, settings=settings)


def _handover(
    spec: PlacementSpec,
    prefill: PlacementSpec,
    variant: Mapping[str, str],
    need: Need,
    files: Sequence[ModelFile],
    board: Board,
    configuration: Configuration,
) -> Placement:
    """Both halves need a KV cache of the same form, because one reads what the other wrote: settings that the second
    half leaves open are those of the first."""
    first = place(prefill, variant, need, files, board, configuration)
    shared = {name: value for name, value in prefill.options.items() if SHORT_NAMES.get(name) in _CACHE_SETTINGS}
    named = {SHORT_NAMES.get(name, name) for name in spec.options}
    options = {name: value for name, value in shared.items() if SHORT_NAMES[name] not in named} | dict(spec.options)
    second = place(replace(spec, prefill=None, options=options), variant, need, files, board, configuration)
    if first.file is not second.file:
        names = f"{first.file.path.name} and {second.file.path.name}"
        raise PlacementError(
            "placement {name}: its halves run different files ({names}), whose KV caches differ",
            name=spec.name,
            names=names,
        )
    for name in _CACHE_SETTINGS:
        values = getattr(first.settings, name), getattr(second.settings, name)
        if values[0] != values[1]:
            raise PlacementError(
                "placement {name}: {setting} is {first} in one half and {second} in the other; set it in one half only",
                name=spec.name,
                setting=name,
                first=values[0],
                second=values[1],
            )
    windowed = second.file.sliding_window is not None
    first = replace(first, settings=replace(first.settings, full_window_cache=windowed))
    settings = replace(second.settings, full_window_cache=windowed)
    return replace(second, name=f"{first.name}+{second.name}", settings=settings, prefill=first)


def _build(spec: PlacementSpec, maker: Engine) -> Build:
    builds = [build for build in maker.builds() if spec.unit in build.units]
    builds.sort(key=lambda build: build.only_when_named(spec.unit))  # software devices last
    if spec.build is not None:
        builds = [build for build in builds if build.name == spec.build]
    if builds:
        return builds[0]
    names = [f"{maker.name}@{build.name}/{unit}" for build in maker.builds() for unit in build.units]
    wanted = f"{spec.engine}@{spec.build}/{spec.unit}" if spec.build else f"{spec.engine}/{spec.unit}"
    reason = maker.missing() or Message("there is no such build; {fix}", fix=alternatives(wanted, names))
    raise PlacementError(Message("placement {placement}: {reason}", placement=spec.text, reason=reason))


def _settings(spec: PlacementSpec, options: Mapping[str, str], need: Need, file: ModelFile, board: Board) -> Settings:
    common = {SHORT_NAMES[name]: value for name, value in options.items() if name in SHORT_NAMES}
    engine_options = tuple((name, value) for name, value in options.items() if name not in SHORT_NAMES)
    numbers = {}
    for name in ("threads", "batch_threads", "micro_batch", "batch", "context", "slots"):
        if name in common:
            text = common.pop(name)
            if not text.isdecimal() or int(text) < 1:
                raise PlacementError(
                    "placement {text}: {name} is a number from 1, not {value}", text=spec.text, name=name, value=text
                )
            numbers[name] = int(text)
    if common.get("flash_attention", "auto") not in ("auto", "on", "off"):
        raise PlacementError("placement {text}: flash attention is on, off or auto", text=spec.text)
    cpus = _cpus(spec, common.pop("cpus"), board) if "cpus" in common else None
    settings = replace(Settings(options=engine_options, cpus=cpus), **common, **numbers)  # type: ignore[arg-type] # SHORT_NAMES
    return _completed(settings, need, file, board)


def _cpus(spec: PlacementSpec, text: str, board: Board) -> tuple[int, ...]:
    """Ranges are joined with +, because commas separate options: mask=4-5+7."""
    try:
        cpus = parse_cpu_list(text.replace("+", ","))
    except ValueError:
        cpus = ()
    here = {cpu for cluster in board.clusters for cpu in cluster.cpus} or set(board.big_cpus)
    if not cpus or not set(cpus) <= here:
        allowed = format_cpu_list(sorted(here)).replace(",", "+")
        raise PlacementError(
            "placement {text}: mask={mask} does not fit; the CPUs here are {allowed}",
            text=spec.text,
            mask=text,
            allowed=allowed,
        )
    return cpus


def _completed(settings: Settings, need: Need, file: ModelFile, board: Board) -> Settings:
    """Adds what the board decides (the threads and the fast cores), and a context that is long enough."""
    has_little_cores = any(cluster.kind == "little" for cluster in board.clusters)
    context = need.context
    if file.context_train and not settings.context:
        if need.least_context > file.context_train:
            raise PlacementError(
                "{asker} need a context of {least_context} tokens and {name} was trained for {context_train}; {fix}",
                asker=need.asker,
                least_context=need.least_context,
                name=file.path.name,
                context_train=file.context_train,
                fix=need.fix,
            )
        context = min(context, file.context_train)
    return replace(
        settings,
        threads=settings.threads or len(settings.cpus or board.big_cpus),
        cpus=settings.cpus or (board.big_cpus if has_little_cores else None),
        context=settings.context or context,
        full_window_cache=file.sliding_window is not None and need.shortest_prefix <= file.sliding_window,
    )

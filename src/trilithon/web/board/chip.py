"""What the picture of a chip shows: a board's units, each with what its sensors say now and the models that sit there.

Pure. What a machine does not tell is None or absent here, never 0."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trilithon.board.processors import Cluster, ClusterKind
from trilithon.board.sensors.probes import PLAUSIBLE, Quantity, Reading
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import format_cpu_list, parse_cpu_list
from trilithon.engines.base import Placement
from trilithon.engines.base import Unit as UnitName
from trilithon.runtime.pool.planning import State
from trilithon.runtime.pool.pool import Loaded

__all__ = [
    "MEMORY_KINDS",
    "Block",
    "ChipView",
    "CoreView",
    "Memory",
    "PlacedModel",
    "Role",
    "Values",
    "read_chip",
    "values_of",
]

Role = Literal["whole", "prefill", "decode"]
Part = Literal["little", "big", "all", "gpu", "npu"]
Values = Mapping[tuple[Quantity, str], float]

MEMORY_KINDS = ("anonymous", "shared", "DMA buffers", "other", "page cache", "free")
"""In the order in which they are drawn: what is held, what can be dropped, what is free."""

_CPU_GROUP = re.compile(r"cpu(\d[\d,-]{0,99})", re.ASCII)
_NPU_CORE = re.compile(r"NPU core (\d{1,2})", re.ASCII)
# What thermal zones are called, in the vendor's and in mainline's device trees and on PCs.
_WHOLE_ZONES = ("soc", "package", "cpu", "coretemp", "k10temp", "zenpower", "x86_pkg_temp", "center")
_UNIT_ZONES: Mapping[str, tuple[str, ...]] = {"gpu": ("gpu",), "npu": ("npu",), "memory": ("ddr", "memory")}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreView:
    """`clock_hz` only where the core has a clock of its own; `load` from 0 to 1."""

    name: str
    load: float | None
    clock_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A cluster, the GPU or the NPU. `name` is its design, `load` that of the whole where its cores have none."""

    part: Part
    name: str
    cores: tuple[CoreView, ...] = ()
    load: float | None = None
    clock_hz: float | None = None
    top_hz: float | None = None
    celsius: float | None = None

    @property
    def unit(self) -> UnitName:
        return self.part if self.part == "gpu" or self.part == "npu" else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedModel:
    """A model on a unit; `role` is what it does there, "whole" where one unit does all."""

    unit: UnitName
    model: str
    placement: str
    role: Role
    state: State
    users: int
    waiting: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`kinds` are some of MEMORY_KINDS, in that order."""

    total_bytes: float | None
    kinds: tuple[tuple[str, float], ...]
    swap_bytes: float | None
    clock_hz: float | None
    top_hz: float | None
    celsius: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipView:
    """`temperatures` are of no single unit, by the name of their sensor; `watts` by that of their meter. `running` and
    `waiting` are requests."""

    name: str
    model: str
    blocks: tuple[Block, ...]
    memory: Memory
    temperatures: tuple[tuple[str, float], ...]
    watts: tuple[tuple[str, float], ...]
    placed_models: tuple[PlacedModel, ...]
    running: int
    waiting: int

    def sitting(self, unit: UnitName) -> tuple[PlacedModel, ...]:
        return tuple(placed for placed in self.placed_models if placed.unit == unit)


def values_of(readings: Iterable[Reading]) -> dict[tuple[Quantity, str], float]:
    return {(reading.quantity, reading.name): reading.value for reading in readings}


def read_chip(board: Board, values: Values, loaded: Sequence[Loaded] = (), waiting: int = 0) -> ChipView:
    """What is not plausible in `values` is left out, NaN and infinity with it."""
    values = {key: value for key, value in values.items() if PLAUSIBLE[key[0]][0] <= value <= PLAUSIBLE[key[0]][1]}
    zones = {name: value for (quantity, name), value in values.items() if quantity == "temperature"}
    blocks = _blocks(board, values, zones)
    placed_models = tuple(placed for model in loaded for placed in _placed_models(model))
    units = {block.unit for block in blocks}
    lone = dict.fromkeys(placed.unit for placed in placed_models if placed.unit not in units)
    others = [unit for unit in lone if unit == "gpu" or unit == "npu"]
    blocks += [Block(part="all", name="")] * ("cpu" in lone) + [Block(part=unit, name="") for unit in others]
    memory = _memory(board, values, zones)
    return ChipView(
        name=board.chip if board.chip != "unknown" else "",
        model=board.model,
        blocks=tuple(blocks),
        memory=memory,
        temperatures=tuple(sorted(zones.items(), key=lambda zone: _rank(zone[0]))),
        watts=tuple((name, value) for (quantity, name), value in values.items() if quantity == "power"),
        placed_models=placed_models,
        running=sum(model.users for model in loaded),
        waiting=waiting,
    )


def _blocks(board: Board, values: Values, zones: dict[str, float]) -> list[Block]:
    """Takes from `zones` those that belong to one of them."""
    blocks = [
        _cpu_block(cluster, cpus, values, _cpu_zone(zones, cluster.kind))
        for cluster in board.clusters
        for cpus in _split(cluster, values)
    ]
    if board.gpu or ("load", "GPU") in values or board.clock("gpu"):
        name = (board.gpu and (board.gpu.name or board.gpu.driver)) or ""
        blocks.append(_unit_block(board, "gpu", name, (), values, zones))
    if board.npu:
        cores = _npu_cores(board.npu.cores, values)
        version = f" {board.npu.version}" if board.npu.version else ""
        driver = "" if board.npu.driver == "none" else f"{board.npu.driver}{version}"
        blocks.append(_unit_block(board, "npu", driver, cores, values, zones))
    return blocks


def _split(cluster: Cluster, values: Values) -> list[tuple[int, ...]]:
    """By clock, as the two pairs of big cores of an RK3588; not where each CPU has its own."""
    groups = [cpus for quantity, name in values if quantity == "clock" and (cpus := _cpus_of(name))]
    own = sorted({cpus for cpus in groups if len(cpus) > 1 and set(cpus) <= set(cluster.cpus)})
    if cluster.kind == "all" or sorted(cpu for cpus in own for cpu in cpus) != sorted(cluster.cpus):
        return [cluster.cpus]
    return own


def _cpus_of(name: str) -> tuple[int, ...]:
    match = _CPU_GROUP.fullmatch(name)
    return parse_cpu_list(match[1]) if match else ()


def _cpu_block(cluster: Cluster, cpus: tuple[int, ...], values: Values, celsius: float | None) -> Block:
    name = f"cpu{format_cpu_list(cpus)}"
    clocks = [values[key] for key in values if key[0] == "clock" and set(_cpus_of(key[1])) & set(cpus)]
    many = len(cpus) > 1
    cores = tuple(
        CoreView(
            name=str(cpu),
            load=values.get(("load", f"cpu{cpu}")),
            clock_hz=values.get(("clock", f"cpu{cpu}")) if many else None,
        )
        for cpu in cpus
    )
    return Block(
        part=cluster.kind,
        name=cluster.core_type or "",
        cores=cores,
        load=values.get(("load", name)),
        clock_hz=max(clocks, default=None),
        top_hz=cluster.max_khz * 1e3 if cluster.max_khz else None,
        celsius=celsius,
    )


def _cpu_zone(zones: dict[str, float], kind: ClusterKind) -> float | None:
    """The vendor numbers the zones of big clusters 0 and 1, mainline 0 and 2: their order tells, and those of the
    clusters before this one are taken already."""
    own = sorted(name for name in zones if name.startswith(f"{kind}core"))
    return zones.pop(own[0]) if own else None


def _unit_block(
    board: Board,
    unit: Literal["gpu", "npu"],
    name: str,
    cores: tuple[CoreView, ...],
    values: Values,
    zones: dict[str, float],
) -> Block:
    clock, title = board.clock(unit), unit.upper()
    return Block(
        part=unit,
        name=name,
        cores=cores,
        load=values.get(("load", title)),
        clock_hz=values.get(("clock", title)),
        top_hz=clock.max_hz if clock else None,
        celsius=_zone(zones, unit),
    )


def _npu_cores(count: int | None, values: Values) -> tuple[CoreView, ...]:
    seen = {int(match[1]) for quantity, name in values if quantity == "load" and (match := _NPU_CORE.fullmatch(name))}
    numbers = sorted(seen | set(range(count or 0)))
    return tuple(CoreView(name=str(core), load=values.get(("load", f"NPU core {core}"))) for core in numbers)


def _zone(zones: dict[str, float], unit: str) -> float | None:
    zone = next((name for name in sorted(zones) if name.lower().startswith(_UNIT_ZONES[unit])), None)
    return None if zone is None else zones.pop(zone)


def _rank(zone: str) -> tuple[int, str]:
    """What tells of the whole chip comes first."""
    places = (place for place, name in enumerate(_WHOLE_ZONES) if zone.startswith(name))
    return next(places, len(_WHOLE_ZONES)), zone


def _memory(board: Board, values: Values, zones: dict[str, float]) -> Memory:
    known = {kind: values[("memory", kind)] for kind in MEMORY_KINDS if ("memory", kind) in values}
    total = board.memory_bytes
    if total and "free" in known and "anonymous" in known:
        known["other"] = max(0.0, total - sum(known.values()))
    clock = board.clock("memory")
    return Memory(
        total_bytes=total,
        kinds=tuple((kind, known[kind]) for kind in MEMORY_KINDS if kind in known),
        swap_bytes=values.get(("memory", "swap")),
        clock_hz=values.get(("clock", "memory")),
        top_hz=clock.max_hz if clock else None,
        celsius=_zone(zones, "memory"),
    )


def _placed_models(loaded: Loaded) -> Iterable[PlacedModel]:
    """Two of a handover: prefill on one unit, decode on another."""
    placement = loaded.placement
    if placement.prefill is None:
        return [_placed(loaded, placement, "whole")]
    return [_placed(loaded, placement.prefill, "prefill"), _placed(loaded, placement, "decode")]


def _placed(loaded: Loaded, placement: Placement, role: Role) -> PlacedModel:
    return PlacedModel(
        unit=placement.unit,
        model=loaded.key,
        placement=loaded.placement.name,
        role=role,
        state=loaded.state,
        users=loaded.users,
        waiting=loaded.waiting,
        size_bytes=loaded.size_bytes,
    )

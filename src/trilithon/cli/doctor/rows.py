"""The engines' part of `trilithon doctor`: every placement that there is, why a unit has none, and findings."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from trilithon.cli.doctor.doctor import EngineRow, doctor_command
from trilithon.cli.doctor.restore import with_restore
from trilithon.cli.doctor.watch import with_watch
from trilithon.language import Message, all_of, listed

if TYPE_CHECKING:
    from trilithon.board.doctor import Finding
    from trilithon.board.snapshot import Board
    from trilithon.engines.base import Build, Engine, Unit
    from trilithon.settings import Configuration

__all__ = ["doctor", "engine_findings", "engine_rows", "rows_of_missing_units"]


def engine_rows(board: "Board") -> Sequence[EngineRow]:
    from trilithon.engines.table import broken_engines, engines
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    known_engines = engines(configuration)
    rows = [row for engine in known_engines for row in _rows_of(engine, configuration)]
    builds = [build for engine in known_engines if not engine.only_when_named for build in engine.builds()]
    units = {unit for build in builds for unit in build.units if not build.only_when_named(unit)}
    rows += [
        EngineRow(f"{broken.name}/…", usable=False, why=broken.problem, fix=broken.fix)
        for broken in broken_engines(configuration)
    ]
    return rows + rows_of_missing_units(units, board)


def _rows_of(engine: "Engine", configuration: "Configuration") -> Iterator[EngineRow]:
    for problem in filter(None, (engine.missing(), *engine.problems())):
        why, _, fix = problem.partition("; run: ")
        yield EngineRow(f"{engine.name}/…", usable=False, why=why, fix=fix)
    for build in engine.builds():
        version = listed((build.version, build.where))
        if engine.only_when_named:
            why = listed((version, Message("only when named")), "; ")
            yield EngineRow(f"{engine.name}/{build.units[0]}", usable=True, why=why)
            continue
        for unit in build.units:
            why = listed((version, *_particulars(build, unit, configuration)), "; ")
            yield EngineRow(f"{engine.name}@{build.name}/{unit}", usable=True, why=why)


def _particulars(build: "Build", unit: "Unit", configuration: "Configuration") -> Iterator[str]:
    """Its devices, and what was given up there to make it run."""
    from trilithon.runtime.fallback.store import known_of

    if build.kernels:
        yield Message("kernels chosen for this CPU: {kernels}", kernels=build.kernels)
    if build.lacks and unit == "cpu":
        yield Message("compiled without {lacks}", lacks=all_of(build.lacks))
    for device in build.devices:
        if device.unit == unit:
            software = Message("software: only when named") if device.software else ""
            yield listed(filter(None, (f"{device.id}: {device.name}", device.driver, software)))
    for known in known_of(configuration, build, unit):
        if known.step:
            model = f"{known.architecture} {known.quantization}"
            runs = Message("{model} runs with {step}", model=model, step=known.step)
            cause = [Message("because it failed {cause}", cause=known.failed[-1])] if known.failed else []
            yield listed([runs, *cause])


def rows_of_missing_units(units: "Collection[Unit]", board: "Board") -> list[EngineRow]:
    """GPU and NPU where they are not among `units`, which engines use: each with the reason."""
    return [EngineRow(unit, usable=False, why=_why_none(unit, board)) for unit in ("gpu", "npu") if unit not in units]


def _why_none(unit: str, board: "Board") -> str:
    from trilithon.board.chips import is_unknown_rockchip

    if unit == "npu" and board.device_tree_hidden:
        return Message("the device tree is hidden here, and the chip cannot be told: see the findings")
    others = listed(board.other_npus) if unit == "npu" else ""
    if unit == "npu" and not board.npu and is_unknown_rockchip(board.chip):
        chip = Message("{chip} with {npus}", chip=board.chip, npus=others) if others else board.chip
        return Message("unknown chip {chip}: no engine here is known to support its NPU", chip=chip)
    if (board.gpu if unit == "gpu" else board.npu) or others:
        return Message("no engine here supports the {unit}", unit=others or unit.upper())
    return Message("the kernel shows no {unit} here", unit=unit.upper())


def engine_findings() -> "list[Finding]":
    from trilithon.engines.build_findings import build_findings
    from trilithon.settings import load_configuration

    return build_findings(load_configuration())


doctor = with_restore(with_watch(doctor_command(engine_rows, engine_findings)))

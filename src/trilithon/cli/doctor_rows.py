"""The engines' part of `trilithon doctor`: every placement that there is, and why a unit has none."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trilithon.cli.doctor import EngineRow, doctor_command

if TYPE_CHECKING:
    from trilithon.board.snapshot import Board
    from trilithon.engines.base import Engine

__all__ = ["doctor"]


def _engine_rows() -> Sequence[EngineRow]:
    from trilithon.board.snapshot import read_board
    from trilithon.engines.table import engines
    from trilithon.settings import load_configuration

    found = engines(load_configuration())
    rows = [row for engine in found for row in _rows_of(engine)]
    units = {
        unit for engine in found if not engine.only_when_named for build in engine.builds() for unit in build.units
    }
    board = read_board()
    return rows + [
        EngineRow(unit, usable=False, why=_why_none(unit, board)) for unit in ("gpu", "npu") if unit not in units
    ]


def _rows_of(engine: "Engine") -> Iterator[EngineRow]:
    missing = engine.missing()
    if missing:
        why, _, mend = missing.partition("; run: ")
        yield EngineRow(f"{engine.name}/…", usable=False, why=why, mend=mend)
    for build in engine.builds():
        told = f"{build.version}, {build.where}"
        if engine.only_when_named:
            yield EngineRow(f"{engine.name}/{build.units[0]}", usable=True, why=f"{told}; only when named")
            continue
        for unit in build.units:
            yield EngineRow(f"{engine.name}@{build.name}/{unit}", usable=True, why=told)


def _why_none(unit: str, board: "Board") -> str:
    there = board.gpu if unit == "gpu" else board.npu
    return (
        f"this version has no engine for the {unit.upper()} yet"
        if there
        else f"the kernel shows no {unit.upper()} here"
    )


doctor = doctor_command(_engine_rows)

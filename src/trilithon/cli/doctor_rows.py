"""The engines' part of `trilithon doctor`: every placement that there is, and what the missing ones need."""

from collections.abc import Sequence

from trilithon.cli.doctor import EngineRow, doctor_command

__all__ = ["doctor"]


def _engine_rows() -> Sequence[EngineRow]:
    from trilithon.engines.table import engines
    from trilithon.settings import load_configuration

    rows = []
    for engine in engines(load_configuration()):
        missing = engine.missing()
        if missing:
            why, _, mend = missing.partition("; run: ")
            rows.append(EngineRow(f"{engine.name}/…", usable=False, why=why, mend=mend))
        for build in engine.builds():
            rows += [
                EngineRow(f"{engine.name}@{build.name}/{unit}", usable=True, why=f"{build.version}, {build.where}")
                for unit in build.units
            ]
    return rows


doctor = doctor_command(_engine_rows)

"""What `trilithon engines list` shows: every build and where it comes from, and why an engine has none."""

import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.cli.output import shown
from trilithon.engines.base import Build, Device
from trilithon.engines.registry import Registered, registered
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.terminal import fitting, plain_console
from trilithon.units import format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["BuildRow", "as_json", "build_rows", "render"]

_FEATURE_WORDS = {"logprobs": "log-probabilities"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRow:
    """One build, or why there is none: then `build` is None, and `problem` and `fix` say it. `facts` is how it was
    made, where that is known. `source` is where it comes from: package, settings, PATH, added, built here, or found
    in a place where people put them."""

    engine: str
    name: str
    build: Build | None = None
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    only_when_named: bool = False
    problem: str = ""
    fix: str = ""


def build_rows(configuration: Configuration) -> list[BuildRow]:
    from trilithon.engines.table import broken_engines, engines

    entries = registered(configuration)
    rows = []
    for engine in engines(configuration):
        for build in engine.builds():
            source, facts = _source(build, entries, configuration)
            rows.append(
                BuildRow(
                    engine=engine.name,
                    name=build.name,
                    build=build,
                    source=source,
                    facts=facts,
                    only_when_named=engine.only_when_named,
                )
            )
        if missing := engine.missing():
            why, _, fix = missing.rpartition("; ")
            rows.append(BuildRow(engine=engine.name, name="", problem=why or missing, fix=fix))
    rows += [
        BuildRow(engine=broken.name, name="", problem=broken.problem, fix=broken.fix)
        for broken in broken_engines(configuration)
    ]
    used = [Path(row.build.where) for row in rows if row.build and _is_path(row.build)]
    return rows + [_unused(entry) for entry in entries if not any(_inside(path, entry.folder) for path in used)]


def as_json(rows: Sequence[BuildRow]) -> list[dict[str, Any]]:
    return [_row_json(row) for row in rows]


def render(rows: Sequence[BuildRow], *, width: int, colour: bool) -> str:
    """A table for people that fits `width` columns; below it what is missing, each with its fix."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    titles = (Message("build"), Message("version"), Message("units"), Message("can"), Message("from"))
    for title, most in zip(titles, (None, width // 6, width // 5, width // 5, None), strict=True):
        table.add_column(shown(title), overflow="fold", max_width=most)
    for row in rows:
        if row.build is not None:
            table.add_row(*map(Text, _cells(row, row.build)))
    console = plain_console(
        file=StringIO(),
        width=width,
        color_system="standard" if colour else None,
        force_terminal=colour,
        legacy_windows=False,
    )
    lines: list[tuple[RenderableType, bool]] = [(fitting(table, console), False)]
    for row in rows:
        if row.problem:
            lines.append((Text(f"✗ {row.engine or row.name}: {shown(row.problem)}"), False))
            lines += [(Text(f"  → {row.fix}"), True)] if row.fix else []
    with console.capture() as capture:
        for line, is_fix in lines:
            console.print(line, soft_wrap=is_fix)  # it stays one line, so that it can be copied
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _cells(row: BuildRow, build: Build) -> tuple[str, ...]:
    name = f"{build.engine}@{build.name}" + f"\n{shown(Message('(only when named)'))}" * row.only_when_named
    commit = row.facts.get("commit", "")
    version = build.version + (f"\ncommit {commit}" if commit and commit[:7] not in build.version else "")
    units = "\n".join([", ".join(build.units), *map(_device_text, build.devices)])
    made = _made_text(row.facts)
    where = f"{row.source}: {_folder_text(build)}" if row.source != "package" else _package_of(build)
    where += f"\n{made}" if made else ""
    return name, version, units, ", ".join(_features(build)), where


def _device_text(device: Device) -> str:
    return f"{device.id} {device.name}{' (software)' * device.software}"


def _made_text(facts: Mapping[str, Any]) -> str:
    """ "c++ (Debian 12.2.0) 12.2.0, for 4×Cortex-A76 as armv8.2-a+dotprod+fp16, in 7:50; GGML_VULKAN"."""
    if "flags" not in facts:
        return ""
    extra = [name for name in ("GGML_VULKAN", "GGML_RPC", "GGML_CPU_KLEIDIAI") if facts["flags"].get(name) == "ON"]
    cpu = " as ".join(filter(None, (facts.get("cpu"), facts.get("march"))))
    parts = [facts.get("compiler", ""), f"for {cpu}" if cpu else ""]
    parts += [f"in {format_duration(facts['seconds'])}"] if "seconds" in facts else []
    return "; ".join(filter(None, [", ".join(filter(None, parts)), ", ".join(extra)]))


def _features(build: Build) -> list[str]:
    return sorted(_FEATURE_WORDS.get(feature, feature) for feature in build.features)


def _row_json(row: BuildRow) -> dict[str, Any]:
    common = {"engine": row.engine, "name": row.name, "usable": row.build is not None}
    if row.build is None:
        return common | {"problem": row.problem, "fix": row.fix}
    build = row.build
    return common | {
        "version": build.version,
        "fingerprint": build.fingerprint,
        "units": list(build.units),
        "devices": [asdict(device) for device in build.devices],
        "features": _features(build),
        "only_when_named": row.only_when_named,
        "units_only_when_named": [unit for unit in build.units if build.only_when_named(unit)],
        "source": row.source,
        "where": build.where,
        "facts": dict(row.facts),
    }


def _source(build: Build, entries: Sequence[Registered], configuration: Configuration) -> tuple[str, Mapping[str, Any]]:
    if _package_of(build):
        return "package", {}
    path = Path(build.where)
    for entry in entries:
        if _inside(path, entry.folder):
            return ("built here" if "flags" in entry.facts else "added"), entry.facts
    if any(_inside(path, folder) for folder in configuration.builds):
        return "settings", {}
    on_path = shutil.which(path.name)
    return ("PATH" if on_path and Path(on_path).resolve() == path.resolve() else "found"), {}


def _package_of(build: Build) -> str:
    """The Python package that carries it, in words; empty where none does."""
    if not _is_path(build):
        return build.where
    path = Path(build.where)
    for base in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if path.is_relative_to(base):
            return f"package {path.relative_to(base).parts[0]}"
    return ""


def _folder_text(build: Build) -> str:
    """ "~/llama.cpp/build/bin"."""
    folder, home = Path(build.where).parent, Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _is_path(build: Build) -> bool:
    return Path(build.where).is_absolute()


def _inside(path: Path, folder: Path) -> bool:
    """Whether the build at `path` (a program, a library or its folder) is the one in `folder`."""
    return folder.resolve() in (path.resolve(), path.resolve().parent)


def _unused(entry: Registered) -> BuildRow:
    """A registered folder in which no engine finds a build any more."""
    there = f"no engine recognises {entry.folder}" if entry.folder.is_dir() else f"{entry.folder} is gone"
    return BuildRow(engine="", name=entry.name, problem=there, fix=f"run: trilithon engines remove {entry.name}")

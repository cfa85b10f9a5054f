"""`trilithon engines`: which programs run models here, where they come from, and whether they work."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.engines.install import install
from trilithon.cli.output import say
from trilithon.cli.words import WordChoice
from trilithon.errors import Interrupted, PlacementError, UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.bench.trial import Trial
    from trilithon.engines.base import Build, Unit
    from trilithon.settings import Configuration

__all__ = ["engines"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WIDEST = 140


def _complete_registered(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.engines.registry import registered
    from trilithon.settings import load_configuration

    return [entry.name for entry in registered(load_configuration()) if entry.name.startswith(incomplete)]


def _complete_builds(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.settings import load_configuration

    names = dict.fromkeys(build.name for build in _builds(load_configuration()))
    return [name for name in names if name.startswith(incomplete)]


@click.group("engines")
def engines() -> None:
    """List, add, install, compile, check and remove engine builds.

    A build is one installed copy of an engine; a placement names it as ENGINE@BUILD/UNIT."""


@engines.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List every build: version, units, devices, features, location."""
    from trilithon.cli.engines import rows as engine_rows
    from trilithon.settings import load_configuration

    rows = engine_rows.build_rows(load_configuration())
    if as_json:
        say(json.dumps(engine_rows.as_json(rows), indent=2, ensure_ascii=False))
        return
    terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST) if terminal else _WIDEST
    say(engine_rows.render(rows, width=width, colour=terminal), nl=False, raw=True)


@engines.command("add")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="The build's name in placements. [default: from its folder]")
def add(path: Path, name: str | None) -> None:
    """Add the build in the folder PATH, which holds a llama-server or a librkllmrt.so."""
    from trilithon.engines import registry
    from trilithon.engines.inspection import find_build, name_for
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    folder = find_build(path)
    name = name or name_for(folder)
    _require_unused(name, folder, configuration)
    registry.add(configuration, registry.Registered(name=name, folder=folder))
    say(Message("added {name}: {folder}", name=name, folder=folder), wrap=True)
    say(Message("try it with: trilithon engines check {name}", name=name), err=True)


engines.add_command(install)


@engines.command("remove")
@click.argument("name", shell_complete=_complete_registered)
@click.option("--delete", is_flag=True, help="Also remove its folder, if it was compiled here.")
def remove(name: str, delete: bool) -> None:
    """Remove the build NAME from the list."""
    from trilithon.engines import registry
    from trilithon.engines.llamacpp.compile import delete_build, require_compiled
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    if delete:
        require_compiled(name, configuration)
    entry = registry.remove(configuration, name)
    if delete:
        delete_build(entry)
    if delete:
        say(Message("removed {name}", name=name), err=True)
    else:
        say(Message("removed {name}; its folder stays: {folder}", name=name, folder=entry.folder), err=True)


@engines.command("build")
@click.option(
    "--engine",
    type=WordChoice(["llama.cpp", "ik", "rk"]),
    default="llama.cpp",
    show_default=True,
    help="What to compile; ik is ik_llama.cpp, rk is a fork for Rockchip's NPU (with --source).",
)
@click.option("--vulkan", is_flag=True, help="Build with Vulkan, for a GPU.")
@click.option("--rpc", is_flag=True, help="Build with RPC.")
@click.option("--kleidiai", is_flag=True, help="Build with Arm's KleidiAI kernels (fetched from GitHub).")
@click.option("--jobs", type=click.IntRange(1, 256), help="Parallel compilers. [default: by CPUs and free memory]")
@click.option("--version", help="The version of the package with the source. [default: a tested one]")
@click.option("--source", type=click.Path(path_type=Path), help="Use this folder or archive of the source instead.")
@click.option("--name", help="The build's name in placements. [default: from version and options]")
@click.option("--force", is_flag=True, help="Compile again if the build exists.")
def build(engine: str, **words: Any) -> None:
    """Compile llama.cpp for this CPU: llama-server, llama-bench, llama-quantize, llama-perplexity. With --engine ik
    compile ik_llama.cpp, a fork with faster kernels for CPUs.

    Takes about 10 minutes on two cores, longer with Vulkan. Needs a C++ compiler, cmake, and ninja or make; with
    Vulkan also glslc and the headers of Vulkan and SPIR-V."""
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.signals import stoppable
    from trilithon.engines.llamacpp.compile import Recipe, compile_llamacpp
    from trilithon.engines.table import COMPILED
    from trilithon.settings import load_configuration

    module, _, name = COMPILED[engine].partition(":")
    recipe = Recipe(package=getattr(import_module(module), name), **words)
    with stoppable("stopped; nothing was installed"), CompileProgress() as progress:
        made = compile_llamacpp(recipe, load_configuration(), progress)
    if not made.fresh:
        say(Message("{name} exists; to compile it again, add --force", name=made.entry.name), err=True)
    for lacking in made.entry.facts.get("without", ()):
        note = Message("note: glslc is too old for {lacking}; a newer one makes faster shaders", lacking=lacking)
        say(note, err=True)
    say(f"{made.entry.name}  {made.entry.folder}")
    say(Message("try it with: trilithon engines check {name}", name=made.entry.name), err=True)


@engines.command("check")
@click.argument("name", required=False, shell_complete=_complete_builds)
@click.option("--anew", is_flag=True, help="Forget the remembered fallback settings first.")
@_JSON
@click.pass_context
def check(context: click.Context, name: str | None, anew: bool, as_json: bool) -> None:
    """Run a tiny model on the build NAME (BUILD or ENGINE@BUILD; default: all), and show what works.

    A unit that has only software devices is tried only when its build is named. Exit code 1 when something fails."""
    from trilithon.cli.signals import run_stoppable
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    wanted = _wanted(name, configuration)
    if anew:
        _forget(wanted, configuration)
    try:
        trials = run_stoppable(_try_out(wanted, configuration))
    except Interrupted:
        raise Interrupted("stopped") from None
    if as_json:
        say(json.dumps([_trial_json(trial) for trial in trials], indent=2, ensure_ascii=False))
    else:
        _print_trials(trials)
    context.exit(0 if all(trial.works for trial in trials) else 1)


def _forget(wanted: "list[tuple[Build, Unit]]", configuration: "Configuration") -> None:
    from trilithon.runtime.fallback.store import forget

    for build, unit in wanted:
        if count := forget(configuration, build, unit):
            models = f"{count} kind{'s' * (count > 1)} of model"
            place = f"{build.engine}@{build.name}/{unit}"
            say(Message("{place}: forgot the fallback settings for {models}", place=place, models=models), err=True)


def _builds(configuration: "Configuration", *, named: bool = True) -> "list[Build]":
    """Those of every engine; `named` False leaves out the engines that are never chosen by themselves."""
    from trilithon.engines import table

    return [build for one in table.engines(configuration) if named or not one.only_when_named for build in one.builds()]


def _require_unused(name: str, folder: Path, configuration: "Configuration") -> None:
    """No other build may answer to this name: those that are not in the registry are known to the engines alone."""
    for build in _builds(configuration):
        if build.name == name and folder not in (Path(build.where), Path(build.where).parent):
            raise UserError(
                "{name} is already the build {where}; choose another name with --name", name=name, where=build.where
            )


def _wanted(name: str | None, configuration: "Configuration") -> "list[tuple[Build, Unit]]":
    if name is None:
        every = _builds(configuration, named=False)
        return [(build, unit) for build in every for unit in build.units if not build.only_when_named(unit)]
    builds = _builds(configuration)
    matching = [build for build in builds if name in (build.name, f"{build.engine}@{build.name}")]
    if not matching:
        fix = alternatives(name, (f"{build.engine}@{build.name}" for build in builds))
        raise PlacementError(Message("there is no build {name}; {fix}", name=name, fix=fix))
    return [(build, unit) for build in matching for unit in build.units]


async def _try_out(wanted: "list[tuple[Build, Unit]]", configuration: "Configuration") -> "list[Trial]":
    from trilithon.bench.trial import reference_answer, try_out
    from trilithon.runtime.process import workspace

    trials = []
    with workspace() as folder:
        others = any(unit == "cpu" and Path(build.where).is_absolute() for build, unit in wanted)
        # The packaged build alone would be compared with itself.
        reference = await reference_answer(configuration, folder, None if others else ())
        for build, unit in wanted:
            say(Message("trying {place}", place=f"{build.engine}@{build.name}/{unit}"), err=True)
            trials.append(await try_out(build, unit, reference, configuration, folder, waiting=_tell))
    return trials


def _tell(line: str) -> None:
    say(line, err=True)


def _trial_json(trial: "Trial") -> dict[str, Any]:
    return {
        "placement": trial.placement,
        "version": trial.build.version,
        "where": trial.build.where,
        "tried": trial.tried,
        "works": trial.works,
        "fallback": trial.fallback,
        "capabilities": [
            {"capability": finding.capability, "outcome": finding.outcome, "detail": finding.detail}
            for finding in trial.findings
        ],
    }


def _print_trials(trials: "list[Trial]") -> None:
    marks = {"works": "✓", "fails": "✗", "absent": "–"}
    for trial in trials:
        verdict = "works" if trial.tried else "was not tried"
        verdict = (f"{verdict}, with {trial.fallback}" if trial.fallback else verdict) if trial.works else "fails"
        say(f"{trial.placement} {verdict}", wrap=True)
        for finding in trial.findings:
            say(f"  {marks[finding.outcome]} {finding.capability:<19}{finding.detail}".rstrip(), wrap=True)

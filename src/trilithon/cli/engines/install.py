"""`trilithon engines install`: an engine fetched from its public address, compared with its digest, and added."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import agreed, say
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.engines.install.installing import InstalledEngine, LocalLibrary
    from trilithon.engines.install.sources import EngineSource
    from trilithon.settings import Configuration

__all__ = ["install", "install_engine"]


def _complete_engines(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.engines.install.sources import installable
    from trilithon.settings import load_configuration

    return [engine for engine in installable(load_configuration()) if engine.startswith(incomplete)]


def _complete_versions(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.engines.install.sources import installable
    from trilithon.settings import load_configuration

    # click leaves the arguments before an option without its value unread.
    engine = context.params.get("engine") or next(iter(context.args), "")
    versions = installable(load_configuration()).get(engine, [])
    return [version for version in versions if version.startswith(incomplete)]


@click.command("install")
@click.argument("engine", shell_complete=_complete_engines)
@click.option("--version", shell_complete=_complete_versions, help="The release, or the fork.")
@click.option(
    "--from", "place", type=click.Path(path_type=Path), help="Take this file or folder instead of fetching it."
)
@click.option("-y", "--yes", is_flag=True, help="Agree to the licence, and to a digest that is not in the table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON. Needs --yes.")
def install(engine: str, version: str | None, place: Path | None, yes: bool, as_json: bool) -> None:
    """Fetch ENGINE for the NPU, verify it and add it: rkllm (Rockchip's runtime) or rk-llama.cpp (compiled here).

    Address, licence and digest are shown first. rkllm is 1.2.3 by default; 1.1.4, 1.2.0, 1.3.0 and 1.3.1 are known too.
    rk-llama.cpp is the fork unimatrix099; origin is the one it came from. A stopped download resumes."""
    from trilithon.engines.install.sources import source_of
    from trilithon.settings import load_configuration

    if as_json and not yes:
        raise UserError("--json asks nothing; add --yes, which agrees to the licence")
    configuration = load_configuration()
    source = source_of(engine, version, configuration)
    if place is not None and not place.exists():
        raise UserError(
            "{place} does not exist; name the file or folder with {file}", place=place, file=source.file or "the source"
        )
    done = install_engine(source, configuration, place, yes=yes)
    if as_json:
        say(json.dumps(_outcome(source, done), indent=2, ensure_ascii=False))
        return
    if not done.fresh:
        say(Message("{name} is installed already", name=done.entry.name), err=True)
    say(f"{done.entry.name}  {done.entry.folder}")
    say(Message("try it with: trilithon engines check {name}", name=done.entry.name), err=True)


def install_engine(
    source: "EngineSource", configuration: "Configuration", place: Path | None = None, *, yes: bool
) -> "InstalledEngine":
    """Shows what it is, asks unless `yes`, and installs it. Raises UserError, TrilithonError and Interrupted."""
    from trilithon.engines.install.installing import require_machine

    require_machine(source)
    if source.commit:
        _agree(source, f"from       {place or source.address}", source.pin if place is None else "", yes=yes)
        return _compiled(source, configuration, place)
    if place is None:
        _agree(source, f"from       {source.address}", source.pin, yes=yes)
        return _library(source, configuration, None)
    source, local = _of_the_user(source, configuration, place)
    pin = f"SHA-256 {local.sha256}\n{'':<11}" + (
        f"that of {source.engine} {local.known}" if local.known else "which is not in the table: nobody vouches for it"
    )
    _agree(source, f"from       {local.path}", pin, yes=yes)
    return _library(source, configuration, local)


def _of_the_user(
    source: "EngineSource", configuration: "Configuration", place: Path
) -> "tuple[EngineSource, LocalLibrary]":
    """The version is what the library says, and not what the table has as default."""
    from dataclasses import replace

    from trilithon.engines.install.installing import local_library

    local = local_library(source, place, configuration)
    return replace(source, version=local.known or local.version), local


def _agree(source: "EngineSource", place: str, pin: str, *, yes: bool) -> None:
    """Raises UserError without a terminal to ask on, and Abort when the answer is no."""
    lines = [f"{source.engine} {source.version}: {source.title}", place]
    lines += [f"verified   {pin}"] if pin else []
    lines += [f"licence    {source.licence}", f"           {source.licence_url}"]
    say("\n".join(lines), err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("nothing was installed: there is no terminal to ask on; add --yes to agree")
    if not agreed(Message("Install it?")):
        raise click.Abort


def _library(source: "EngineSource", configuration: "Configuration", local: "LocalLibrary | None") -> "InstalledEngine":
    from trilithon.cli.engines.progress import FetchProgress
    from trilithon.cli.signals import stoppable
    from trilithon.engines.install.installing import install_library

    kept = "stopped; what was received is kept, and the same command goes on"
    with stoppable(kept), FetchProgress(source.file) as progress:
        return install_library(source, configuration, progress.report, local)


def _compiled(source: "EngineSource", configuration: "Configuration", place: Path | None) -> "InstalledEngine":
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.signals import stoppable
    from trilithon.engines.install.installing import install_compiled

    with stoppable("stopped; nothing was installed"), CompileProgress() as progress:
        return install_compiled(source, configuration, progress, place)


def _outcome(source: "EngineSource", done: "InstalledEngine") -> dict[str, Any]:
    facts = done.entry.facts
    return {
        "engine": source.engine,
        "name": done.entry.name,
        "version": facts.get("version", source.version),
        "folder": str(done.entry.folder),
        "source": facts.get("source"),
        "sha256": facts.get("sha256"),
        "commit": facts.get("commit"),
        "licence": source.licence,
        "fresh": done.fresh,
    }

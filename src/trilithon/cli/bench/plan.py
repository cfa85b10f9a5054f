"""`trilithon plan`: which placement runs a model, why, and whether that is still so; set by hand, or removed."""

import json
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.output import say, shown
from trilithon.cli.words import complete_placement
from trilithon.errors import ModelError, UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.models.files.model_file import ModelFile
    from trilithon.results.plan_list import KnownPlan
    from trilithon.settings import Configuration

__all__ = ["plan"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_TITLES = (Message("MODEL"), Message("PLACEMENT"), Message("FROM"), Message("STATE"))


def _complete_planned(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.settings import load_configuration

    return [known.name for known in _plans(load_configuration()) if known.name.startswith(incomplete)]


@click.group("plan")
def plan() -> None:
    """List, show, set and remove plans: the placement that runs a model.

    `trilithon bench` makes them; `trilithon serve`, `trilithon run` and the web pages run a model on its plan. It is
    stale when this machine has changed since it was made, and used until it is renewed."""


@plan.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List the plans, where they come from, and whether they are stale."""
    from trilithon.cli.models.rows import aligned
    from trilithon.settings import load_configuration

    plans = _plans(load_configuration())
    if as_json:
        say(json.dumps([known.as_json() for known in plans], indent=2, ensure_ascii=False))
    elif plans:
        rows = [(known.name, known.plan.placement, known.plan.origin, known.state) for known in plans]
        say("\n".join(aligned([tuple(map(shown, _TITLES)), *rows])), wrap=True)
    else:
        say(Message("there are no plans; make one with: trilithon bench MODEL"), err=True)


@plan.command("show")
@click.argument("model", shell_complete=_complete_planned)
@_JSON
def show(model: str, as_json: bool) -> None:
    """Show the plan of MODEL: its grounds, and the machine that it was made on."""
    from trilithon.cli.models.rows import aligned
    from trilithon.settings import load_configuration

    known = _known(model, load_configuration())
    if as_json:
        say(json.dumps(known.as_json(), indent=2, ensure_ascii=False))
        return
    kept = known.plan
    facts = [("placement", kept.placement), ("from", kept.origin), ("state", known.state), ("verdict", kept.sentence)]
    facts += [("SHA-256", kept.sha256), *kept.fingerprint.items()]
    say("\n".join([known.name, *(f"  {line}" for line in aligned([fact for fact in facts if fact[1]]))]), wrap=True)


@plan.command("set")
@click.argument("model", shell_complete=complete_model_or_file)
@click.argument("placement", shell_complete=complete_placement)
@_JSON
def set_command(model: str, placement: str, as_json: bool) -> None:
    """Run MODEL (a name or a file) on PLACEMENT, whatever was measured: ENGINE[@BUILD]/UNIT[:NAME=VALUE,…].

    A campaign does not replace a plan that was set by hand."""
    from pathlib import Path

    from trilithon.board.snapshot import read_board
    from trilithon.engines.placement_spec import parse_placement
    from trilithon.engines.placing import Need, place, refuse_server
    from trilithon.results.fingerprints import fingerprint_of
    from trilithon.results.plan_list import KnownPlan
    from trilithon.results.plans import Plan, keep_plan
    from trilithon.settings import load_configuration

    configuration, board = load_configuration(), read_board()
    spec = parse_placement(placement)
    refuse_server(spec)
    file = _file(model, configuration)
    place(spec, {}, Need(), [file], board, configuration)
    kept = Plan(
        sha256=file.sha256,
        placement=spec.name,
        board=board.identity(),
        campaign=0,
        sentence="",
        model=str(file.path) if Path(model).is_file() else model,
        by_hand=True,
        fingerprint=fingerprint_of(spec.name, board, configuration),
    )
    keep_plan(configuration.data, kept)
    if as_json:
        say(json.dumps(KnownPlan(plan=kept).as_json(), indent=2, ensure_ascii=False))
    message = Message(
        "trilithon serve now runs it on {placement} (undo: trilithon plan rm {model})",
        placement=spec.name,
        model=shlex.quote(model),
    )
    say(message, err=True)


@plan.command("rm")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=_complete_planned)
@_JSON
def remove(models: tuple[str, ...], as_json: bool) -> None:
    """Remove plans. The server then takes the first placement that can run the model, the CPU before others."""
    from trilithon.results.plans import remove_plan
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    plans = [_known(model, configuration) for model in models]
    for known in plans:
        remove_plan(configuration.data, known.plan.sha256, known.plan.board)
        placement = known.plan.placement
        say(Message("removed the plan {placement} of {name}", placement=placement, name=known.name), err=True)
    if as_json:
        say(json.dumps([known.as_json() for known in plans], indent=2, ensure_ascii=False))


def _plans(configuration: "Configuration") -> "list[KnownPlan]":
    from trilithon.board.snapshot import read_board
    from trilithon.results.plan_list import known_plans

    return known_plans(read_board(), configuration)


def _known(text: str, configuration: "Configuration") -> "KnownPlan":
    """The plan of a model, or of one that is gone: by the name that it had, or the beginning of its SHA-256, as listed.
    Raises UserError where there is none."""
    plans = _plans(configuration)
    try:
        sha256 = _file(text, configuration).sha256
        matching = [replace(known, reference=text) for known in plans if known.plan.sha256 == sha256]
    except ModelError:
        digest = text if _DIGEST.fullmatch(text) else None
        matching = [
            known for known in plans if known.plan.model == text or (digest and known.plan.sha256.startswith(digest))
        ]
        if not matching:
            raise
    # Those of this board first; of another only where there is no other.
    matching.sort(key=lambda known: not known.is_of_this_board)
    if not matching:
        raise UserError("there is no plan for {text}; see: trilithon plan list", text=text)
    return matching[0]


def _file(text: str, configuration: "Configuration") -> "ModelFile":
    """The weights that would be served, with their SHA-256. Raises ModelError."""
    from trilithon.cli.models.commands import locate_model
    from trilithon.cli.progress import reading
    from trilithon.models.files.model_file import read_model_file

    path = locate_model(text, (), configuration)
    return read_model_file(path, configuration.cache, reading(f"reading {path.name}"))

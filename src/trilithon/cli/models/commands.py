"""`trilithon list`, `show`, `rm`, `cp`, `verify` and `prune`: the models that are kept here."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from trilithon.errors import ModelError, TrilithonError
from trilithon.units import format_bytes

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.models.names import ModelName
    from trilithon.models.store.manifest import Manifest
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.upkeep import Damage
    from trilithon.settings import Configuration

__all__ = [
    "complete_model",
    "complete_model_or_file",
    "copy",
    "list_models",
    "locate_model",
    "prune",
    "remove",
    "show",
    "verify",
]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def complete_model(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Names of models, for the shell."""
    return [name for each in (*_store().list(), *_adopted()) if (name := str(each.name)).startswith(incomplete)]


def complete_model_or_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Where a path does as well: the shell adds the files."""
    names = [CompletionItem(name) for name in complete_model(context, parameter, incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def locate_model(text: str, placements: Sequence[str], configuration: "Configuration") -> Path:
    """The file that `text` means, a path or a name: of several, the one that the placements could run. It is an
    absolute path, for a campaign may be gone on with in another folder."""
    from trilithon.engines.placing import suits_placements
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.resolve import locate

    with ModelStore.open(configuration) as store:
        return locate(text, store, suits_placements(placements, configuration), _adopted)


@click.command("list")
@click.option("-v", "--verbose", is_flag=True, help="Show the path of every file.")
@_JSON
def list_models(verbose: bool, as_json: bool) -> None:
    """List the models that are here: those in the store, and those of other programs, used in place."""
    from trilithon.cli.models import rows as model_rows

    with _store() as store:
        listing = store.listing()
        known = {str(manifest.name).casefold() for manifest in listing.manifests}
        theirs = [each for each in _adopted() if str(each.name).casefold() not in known]
        found = [*zip(listing.manifests, listing.roots, strict=True), *((their, None) for their in theirs)]
        rows = [model_rows.model_row(*each, store, places=verbose or as_json) for each in found]
    for problem in listing.problems:
        click.echo(f"warning: {problem}", err=True)
    if as_json:
        click.echo(json.dumps(model_rows.as_json(rows), indent=2, ensure_ascii=False))
    elif rows:
        click.echo(model_rows.render(rows), nl=False)
    else:
        click.echo("there are no models yet; pull one: trilithon pull qwen2.5:0.5b", err=True)


@click.command("show")
@click.argument("model", shell_complete=complete_model_or_file)
@click.option("--modelfile", is_flag=True, help="Print the Modelfile that `trilithon create` would make it of.")
@_JSON
def show(model: str, modelfile: bool, as_json: bool) -> None:
    """Say what MODEL is (a name as in trilithon list, or a file), the memory it takes, and what runs it here."""
    from trilithon.cli.models import show as model_show
    from trilithon.models.store.resolve import find_reference
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    with _store() as store:
        reference = find_reference(model, store, _adopted)
        if modelfile:
            click.echo(model_show.modelfile(reference), nl=False)
        elif as_json:
            said = model_show.show_json(reference, store, configuration)
            click.echo(json.dumps(said, indent=2, ensure_ascii=False))
        else:
            click.echo("\n".join(model_show.show_lines(reference, store, configuration)))


@click.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_model)
def remove(names: tuple[str, ...]) -> None:
    """Remove the models NAMES, and the files that no other model uses."""
    from trilithon.models.store.resolve import model_name

    with _store() as store:
        wanted = dict.fromkeys(map(model_name, names))
        for name in wanted:
            if not store.is_local(name):
                _refuse_removal(name, store)
        for name in wanted:
            removal = store.remove(name)
            click.echo(f"removed {name}, {format_bytes(removal.freed_bytes)} freed", err=True)
            for reason in removal.kept:
                click.echo(reason, err=True)


@click.command("cp")
@click.argument("source", shell_complete=complete_model)
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Give the model SOURCE the name TARGET too. Its files are shared, not copied."""
    from trilithon.models.store.resolve import model_name

    with _store() as store:
        kept = store.put(replace(_find(source, store), name=model_name(target)), new=True)
        click.echo(f"{kept.name} is the same model as {source}", err=True)


@click.command("verify")
@click.argument("names", nargs=-1, shell_complete=complete_model)
@click.option("--remove-damaged", is_flag=True, help="Remove damaged files, so that a pull fetches them again.")
@_JSON
def verify(names: tuple[str, ...], remove_damaged: bool, as_json: bool) -> None:
    """Read every file of the models NAMES (of all) and compare it with its SHA-256. Exit code 1 if one is damaged."""
    from dataclasses import asdict

    from trilithon.cli.progress import reading
    from trilithon.models.store import upkeep

    with _store() as store:
        wanted = [_find(name, store).name for name in names]
        for name in wanted:
            if store.root_of(name) is None:
                raise ModelError(f"{name} belongs to another program, and there is nothing here to hold it against")
        damages = upkeep.verify(store, wanted, reading("reading the models"))
        removed = upkeep.remove_damaged(store, damages) if remove_damaged else 0
    if as_json:
        click.echo(json.dumps([asdict(damage) for damage in damages], indent=2, ensure_ascii=False))
    else:
        for damage in damages:
            click.echo(_sentence(damage))
    if removed:
        click.echo(f"removed {_files(removed, 'damaged file')}; pull the models again", err=True)
    if damages:
        raise TrilithonError(_verdict(damages, removed))
    click.echo("every file is what it should be", err=True)


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--all", "everything", is_flag=True, help="Also remove downloads stopped less than a day ago.")
def prune(dry_run: bool, everything: bool) -> None:
    """Remove what nobody uses: files without a model, downloads that were stopped more than a day ago, and what
    conversions that were killed left behind."""
    from trilithon.engines.toolrun import conversions
    from trilithon.models.store import upkeep
    from trilithon.models.store.staging import clear_abandoned
    from trilithon.settings import load_configuration

    with _store() as store:
        pruned = upkeep.prune(store, dry_run=dry_run, stale_seconds=0 if everything else upkeep.STALE_SECONDS)
    for reason in pruned.kept:
        click.echo(reason, err=True)
    left, left_bytes = clear_abandoned(conversions(load_configuration()), dry_run=dry_run)
    what = (
        f"{_files(pruned.blobs, 'file')}, {_files(pruned.partials, 'unfinished download')} and "
        f"{_files(left, 'unfinished conversion')}"
    )
    freed = format_bytes(pruned.freed_bytes + left_bytes)
    click.echo(f"{'would remove' if dry_run else 'removed'} {what}, {freed}")


def _store() -> "ModelStore":
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import load_configuration

    return ModelStore.open(load_configuration())


def _find(text: str, store: "ModelStore") -> "Manifest":
    from trilithon.models.store.resolve import find_model, model_name

    return find_model(model_name(text), store, _adopted)


def _adopted() -> "Sequence[Manifest]":
    from trilithon.models.adopt.places import find_adopted
    from trilithon.settings import load_configuration

    return find_adopted(load_configuration()).manifests


def _refuse_removal(name: "ModelName", store: "ModelStore") -> None:
    """Says why a model that is not the store's own cannot go, or that there is none."""
    from trilithon.models.adopt.places import find_adopted
    from trilithon.settings import load_configuration

    find_adopted(load_configuration()).refuse_removal(name)
    store.remove(name)


def _sentence(damage: "Damage") -> str:
    if not damage.file:
        return damage.problem
    return f"{', '.join(damage.models) or 'no model'}: {damage.file} {damage.problem}"


def _verdict(damages: "list[Damage]", removed: int) -> str:
    models = list(dict.fromkeys(model for damage in damages for model in damage.models))
    steps = ["trilithon verify --remove-damaged"] * (not removed and any(damage.removable for damage in damages))
    steps += [f"trilithon pull {model}" for model in models[:1]]
    files = _files(len(damages), "damaged file")
    return f"{files}; fix with: {', then '.join(steps)}" if steps else f"{files}, as said above"


def _files(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

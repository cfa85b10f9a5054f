"""`trilithon list`, `show`, `rm`, `cp`, `verify` and `prune`: the models of this machine."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from trilithon.cli.models.absent import YES, or_pulled, pulled_here
from trilithon.cli.output import say
from trilithon.errors import ModelError, TrilithonError
from trilithon.language import Message
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
    "files_among",
    "list_models",
    "locate_model",
    "prune",
    "remove",
    "show",
    "verify",
]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def complete_model(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Completion with the names of models."""
    names = [str(model.name) for model in (*_store().list(), *_adopted())]
    return [name for name in names if name.startswith(incomplete)]


def complete_model_or_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completion with the names of models and, by the shell, of files."""
    names = [CompletionItem(name) for name in complete_model(context, parameter, incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def locate_model(text: str, placements: Sequence[str], configuration: "Configuration", *, yes: bool = False) -> Path:
    """The file that `text` (a path or a name) refers to: of several, the first that the placements can run. The path is
    absolute, because a campaign may be resumed in another folder. A model that is not here is pulled once the user
    agrees, with `yes` at once. Raises ModelError."""
    from trilithon.engines.placing import suits_placements
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.resolve import locate

    with ModelStore.open(configuration) as store:
        look = partial(locate, text, store, suits_placements(placements, configuration), _adopted)
        return or_pulled(text, look, pulled_here(text, configuration), yes=yes)


def files_among(models: Iterable[str], configuration: "Configuration", *, yes: bool = False) -> tuple[Path, ...]:
    """The absolute paths of those that are files; the others are names of models, and what is not here is pulled as
    by `locate_model`. Raises ModelError."""
    from trilithon.models.store.model_store import ModelStore
    from trilithon.models.store.resolve import find_reference

    with ModelStore.open(configuration) as store:
        looks = {model: partial(find_reference, model, store, _adopted) for model in models}
        references = [or_pulled(name, look, pulled_here(name, configuration), yes=yes) for name, look in looks.items()]
    return tuple(reference for reference in references if isinstance(reference, Path))


@click.command("list")
@click.option("-v", "--verbose", is_flag=True, help="Show the path of every file.")
@_JSON
def list_models(verbose: bool, as_json: bool) -> None:
    """List the models in the store, and those of other programs, which are used in place."""
    from trilithon.cli.models import rows as model_rows
    from trilithon.cli.models.estimated import estimates_of
    from trilithon.settings import load_configuration

    with _store() as store:
        listing = store.listing()
        known = {str(manifest.name).casefold() for manifest in listing.manifests}
        adopted = [manifest for manifest in _adopted() if str(manifest.name).casefold() not in known]
        models = [*zip(listing.manifests, listing.roots, strict=True), *((manifest, None) for manifest in adopted)]
        models.sort(key=lambda model: model[0].synthetic)
        rows = [model_rows.model_row(*model, store, places=verbose or as_json) for model in models]
    estimated = estimates_of((manifest for manifest, _ in models), load_configuration()) if models else {}
    rows = [
        replace(row, estimate=estimated[row.name][0], fits=estimated[row.name][1]) if row.name in estimated else row
        for row in rows
    ]
    for problem in listing.problems:
        say(Message("warning: {text}", text=problem), err=True)
    if as_json:
        say(json.dumps(model_rows.as_json(rows), indent=2, ensure_ascii=False))
    elif rows:
        say(model_rows.render(rows), nl=False, wrap=True)
    else:
        message = Message(
            "there are no models yet; try the demo model: trilithon run demo; or pull one: trilithon pull qwen2.5:0.5b"
        )
        say(message, err=True)


@click.command("show")
@click.argument("model", shell_complete=complete_model_or_file)
@click.option("--modelfile", is_flag=True, help="Print a Modelfile for `trilithon create`.")
@YES
@_JSON
def show(model: str, modelfile: bool, yes: bool, as_json: bool) -> None:
    """Show MODEL (a name or a file): its properties, the memory that it needs, and what can run it here."""
    from trilithon.cli.models import show as model_show
    from trilithon.models.store.resolve import find_reference
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    with _store() as store:
        look = partial(find_reference, model, store, _adopted)
        reference = or_pulled(model, look, pulled_here(model, configuration), yes=yes)
        if modelfile:
            say(model_show.modelfile(reference), nl=False)
        elif as_json:
            content = model_show.show_json(reference, store, configuration)
            say(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            say("\n".join(model_show.show_lines(reference, store, configuration)), wrap=True)


@click.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_model)
def remove(names: tuple[str, ...]) -> None:
    """Remove the models NAMES, and the files that no other model uses."""
    from trilithon.models.store.resolve import model_name

    with _store() as store:
        targets = dict.fromkeys(map(model_name, names))
        for name in targets:
            if not store.is_local(name):
                _refuse_removal(name, store)
        for name in targets:
            removal = store.remove(name)
            say(Message("removed {name}, {size} freed", name=name, size=format_bytes(removal.freed_bytes)), err=True)
            for reason in removal.kept:
                say(reason, err=True)


@click.command("cp")
@click.argument("source", shell_complete=complete_model)
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Add the name TARGET to the model SOURCE. Its files are shared, not copied."""
    from trilithon.models.store.resolve import model_name

    with _store() as store:
        added = store.put(replace(_find(source, store), name=model_name(target)), new=True)
        say(Message("{name} is the same model as {source}", name=added.name, source=source), err=True)


@click.command("verify")
@click.argument("names", nargs=-1, shell_complete=complete_model)
@click.option("--remove-damaged", is_flag=True, help="Remove damaged files, so that a pull fetches them again.")
@_JSON
def verify(names: tuple[str, ...], remove_damaged: bool, as_json: bool) -> None:
    """Read every file of the models NAMES (default: all) and compare it with its SHA-256. Exit code 1 for damage."""
    from dataclasses import asdict

    from trilithon.cli.progress import reading
    from trilithon.models.store import upkeep

    with _store() as store:
        targets = [_find(name, store).name for name in names]
        for name in targets:
            if store.root_of(name) is None:
                raise ModelError(
                    "{name} belongs to another program, and its checksums are unknown; verify models of the store",
                    name=name,
                )
        damages = upkeep.verify(store, targets, reading("reading the models"))
        removed = upkeep.remove_damaged(store, damages) if remove_damaged else 0
    if as_json:
        say(json.dumps([asdict(damage) for damage in damages], indent=2, ensure_ascii=False))
    else:
        for damage in damages:
            say(_sentence(damage), wrap=True)
    if removed:
        say(f"removed {_files(removed, 'damaged file')}; pull the models again", err=True)
    if damages:
        raise TrilithonError(_verdict(damages, removed))
    say(Message("every file has the right checksum"), err=True)


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--all", "everything", is_flag=True, help="Also remove downloads stopped less than a day ago.")
def prune(dry_run: bool, everything: bool) -> None:
    """Remove unused files: those without a model, downloads that were stopped more than a day ago, and leftovers of
    killed conversions."""
    from trilithon.engines.toolrun import conversions
    from trilithon.models.store import upkeep
    from trilithon.models.store.staging import clear_abandoned
    from trilithon.settings import load_configuration

    with _store() as store:
        pruned = upkeep.prune(store, dry_run=dry_run, stale_seconds=0 if everything else upkeep.STALE_SECONDS)
    for reason in pruned.kept:
        say(reason, err=True)
    conversions_left, conversion_bytes = clear_abandoned(conversions(load_configuration()), dry_run=dry_run)
    what = (
        f"{_files(pruned.blobs, 'file')}, {_files(pruned.partials, 'unfinished download')} and "
        f"{_files(conversions_left, 'unfinished conversion')}"
    )
    freed = format_bytes(pruned.freed_bytes + conversion_bytes)
    say(f"{'would remove' if dry_run else 'removed'} {what}, {freed}", wrap=True)


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
    """Raises ModelError for a model that is not in the local store, with the reason."""
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
    count = _files(len(damages), "damaged file")
    return f"{count}; fix with: {', then '.join(steps)}" if steps else f"{count}, listed above"


def _files(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

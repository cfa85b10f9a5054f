"""`trilithon adopt`: the models of other programs on this disk, and further folders to search."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import say
from trilithon.language import Message
from trilithon.units import format_bytes

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.models.adopt.places import Adoption

__all__ = ["adopt"]

_PATH = click.Path(path_type=Path)


@click.command("adopt")
@click.argument("folders", nargs=-1, type=_PATH)
@click.option("--forget", multiple=True, type=_PATH, metavar="FOLDER", help="Stop searching FOLDER.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def adopt(folders: tuple[Path, ...], forget: tuple[Path, ...], as_json: bool) -> None:
    """Show the models of other programs (Ollama, Hugging Face, LM Studio, RKLLAMA), and add FOLDERS to search.

    They are used by name like all models, stay in their folders, and are never changed or removed."""
    from trilithon.models.adopt.places import find_adopted
    from trilithon.models.adopt.remembered import forget_folder, remember_folder
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    for folder in forget:
        forget_folder(configuration, folder)
        say(Message("removed {folder} from the list; its files are unchanged", folder=folder), err=True)
    for folder in folders:
        if not remember_folder(configuration, folder):
            say(Message("{folder} is in the list already", folder=folder), err=True)
    adoption = find_adopted(configuration)
    if as_json:
        say(json.dumps(_as_json(adoption), indent=2, ensure_ascii=False))
    else:
        _print(adoption)


def _as_json(adoption: "Adoption") -> dict[str, Any]:
    return {
        "models": [
            {
                "name": str(model.manifest.name),
                "source": model.source,
                "place": str(model.place),
                "size_bytes": model.manifest.size_bytes,
                "files": [str(file.path) for file in model.manifest.files],
            }
            for model in adoption.models
        ],
        "skipped": [{"path": str(item.path), "reason": item.reason} for item in adoption.skipped],
        "places": [{"source": place.source, "folder": str(place.folder)} for place in adoption.places],
    }


def _print(adoption: "Adoption") -> None:
    """Print models to stdout, and skipped files with the reason to stderr."""
    from trilithon.cli.models.rows import plain

    width = max((len(str(model.manifest.name)) for model in adoption.models), default=0)
    for model in adoption.models:
        size = format_bytes(model.manifest.size_bytes)
        say(f"{model.manifest.name!s:<{width}}  {size:>10}  {model.source:<12}  {plain(str(model.place))}", wrap=True)
    for item in adoption.skipped:
        say(Message("skipped: {text}", text=plain(f"{item.path} {item.reason}")), err=True)
    searched = ", ".join(f"{plain(str(place.folder))} ({place.source})" for place in adoption.places)
    if not adoption.models:
        say(
            Message("no model of another program was found; add a folder with models: trilithon adopt FOLDER"), err=True
        )
    nothing = Message("nothing, as no other program has models here")
    say(Message("searched: {folders}", folders=searched or nothing), err=True)

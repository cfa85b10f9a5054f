"""`trilithon adopt`: the models that other programs keep on this disk, and folders to look into as well."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
    """Show the models that other programs keep here (Ollama, Hugging Face, LM Studio, RKLLAMA), and those in FOLDERS,
    which are remembered.

    They can be used by their names like any other, stay where they are, and are never changed or removed.
    """
    from trilithon.models.adopt.places import find_adopted
    from trilithon.models.adopt.remembered import forget_folder, remember_folder
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    for folder in forget:
        forget_folder(configuration, folder)
        click.echo(f"forgot {folder}; what is in it stays", err=True)
    for folder in folders:
        if not remember_folder(configuration, folder):
            click.echo(f"{folder} was adopted before", err=True)
    adopted = find_adopted(configuration)
    if as_json:
        click.echo(json.dumps(_as_json(adopted), indent=2, ensure_ascii=False))
    else:
        _print(adopted)


def _as_json(found: "Adoption") -> dict[str, Any]:
    return {
        "models": [
            {
                "name": str(model.manifest.name),
                "source": model.source,
                "place": str(model.place),
                "size_bytes": model.manifest.size_bytes,
                "files": [str(file.path) for file in model.manifest.files],
            }
            for model in found.models
        ],
        "skipped": [{"path": str(each.path), "reason": each.reason} for each in found.skipped],
        "places": [{"source": place.source, "folder": str(place.folder)} for place in found.places],
    }


def _print(found: "Adoption") -> None:
    """Models on stdout, what was passed over and why on stderr."""
    from trilithon.cli.models.rows import plain

    width = max((len(str(model.manifest.name)) for model in found.models), default=0)
    for model in found.models:
        size = format_bytes(model.manifest.size_bytes)
        click.echo(f"{model.manifest.name!s:<{width}}  {size:>10}  {model.source:<12}  {plain(str(model.place))}")
    for each in found.skipped:
        click.echo(f"passed over: {plain(f'{each.path} {each.reason}')}", err=True)
    looked = ", ".join(f"{plain(str(place.folder))} ({place.source})" for place in found.places)
    if not found.models:
        click.echo(
            "no model of another program was found; name a folder that holds some: trilithon adopt FOLDER", err=True
        )
    click.echo(f"looked into {looked or 'nothing: no other program keeps models here'}", err=True)

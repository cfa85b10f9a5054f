"""`trilithon key`: the keys that clients of the server show; made here, named, and taken back by name."""

import json

import click

from trilithon.cli.output import say
from trilithon.cli.words import WordChoice
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.

__all__ = ["key"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _complete_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.serve.access.keys import keys
    from trilithon.settings import load_configuration

    return [key.name for key in keys(load_configuration()) if key.name.startswith(incomplete)]


@click.group("key")
def key() -> None:
    """Add, list and revoke the API keys of `trilithon serve`.

    Once a key exists, the server requires one: `Authorization: Bearer KEY`, or `x-api-key: KEY`. A running server
    applies changes at once."""


@key.command("add")
@click.argument("name")
@click.option(
    "--scope",
    type=WordChoice(["chat", "models", "metrics", "gateway", "admin"]),
    default="admin",
    show_default=True,
    help="chat: ask models. models: pull and remove them too. metrics: read /metrics. gateway: trilithon fleet serve. "
    "admin: everything.",
)
@_JSON
def add(name: str, scope: str, as_json: bool) -> None:
    """Create a key and print it once: only its hash is stored. NAME identifies the client, in logs too."""
    from trilithon.serve.access.keys import add_key
    from trilithon.settings import load_configuration

    secret = add_key(load_configuration(), name, scope)
    say(json.dumps({"name": name, "key": secret, "scope": scope}) if as_json else secret)
    say(Message("key {name} (not shown again). To revoke it: trilithon key rm {name}", name=name), err=True)


@key.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List the names of the keys, when they were created, and what they are for."""
    from trilithon.serve.access.keys import keys
    from trilithon.settings import load_configuration

    known_keys = keys(load_configuration())
    if as_json:
        rows = [{"name": known.name, "created": known.created, "scope": known.scope} for known in known_keys]
        say(json.dumps(rows, indent=2))
        return
    width = max((len(known.name) for known in known_keys), default=0)
    for known in known_keys:
        say(f"{known.name:<{width}}  {known.created}  {known.scope}", wrap=True)
    if not known_keys:
        say(Message("there are no keys; create one with: trilithon key add NAME"), err=True)


@key.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_complete_names)
def remove(names: tuple[str, ...]) -> None:
    """Revoke keys: the server refuses them from the next request on."""
    from trilithon.serve.access.keys import remove_key
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    for name in names:
        remove_key(configuration, name)
        say(Message("removed {name}", name=name), err=True)

"""`trilithon config`: settings with meaning, value and where that comes from; and changes of config.toml."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trilithon.cli.output import say
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.


__all__ = ["config"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """`source` is "default", a file or a variable; `restart` whether a running server needs one to take it."""

    name: str
    value: Any
    source: str
    meaning: str
    variable: str
    restart: bool


def _complete_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _names() if name.startswith(incomplete)]


@click.group("config")
def config() -> None:
    """Show and change settings: config.toml, and the variables TRILITHON_*, which go before it.

    Options of trilithon serve are settings too, as serve.OPTION."""


@config.command("path")
def path_command() -> None:
    """Print the path of config.toml, whether it exists or not."""
    from trilithon.settings import configuration_path

    say(configuration_path())


@config.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List every setting: value, where it comes from, and meaning."""
    settings = _settings()
    if as_json:
        say(json.dumps([_as_json(setting) for setting in settings], indent=2))
        return
    for setting in settings:
        say(f"{setting.name} = {_shown(setting.value)}  ({setting.source})", wrap=True)
        say(
            f"    {setting.meaning}{' A running server needs a restart to take it.' if setting.restart else ''}",
            wrap=True,
        )


@config.command("get")
@click.argument("name", shell_complete=_complete_names)
@_JSON
def get(name: str, as_json: bool) -> None:
    """Print the value of NAME that is in force; a list has one line for each part."""
    setting = next((setting for setting in _settings() if setting.name == _known(name)), None)
    assert setting is not None
    if as_json:
        say(json.dumps(_as_json(setting), indent=2))
        return
    value = _plain(setting.value)
    say("\n".join(map(_text, value)) if isinstance(value, list) else "" if value is None else _text(value))


@config.command("set")
@click.argument("name", shell_complete=_complete_names)
@click.argument("value")
def set_command(name: str, value: str) -> None:
    """Write NAME = VALUE into config.toml. Parts of a list are separated by commas, folders by colons."""
    from trilithon.cli.config_file import change_setting
    from trilithon.settings import configuration_path

    path = configuration_path()
    table, key = _place(_known(name))
    change_setting(path, table, key, _toml_value(name, value))
    say(Message("{name} is set in {path}", name=name, path=path), err=True)
    _say_when(name)


@config.command("unset")
@click.argument("name", shell_complete=_complete_names)
def unset(name: str) -> None:
    """Remove NAME from config.toml, so that its default counts."""
    from trilithon.cli.config_file import change_setting
    from trilithon.settings import configuration_path

    path = configuration_path()
    change_setting(path, *_place(_known(name)), None)
    say(Message("{name} is not set in {path}", name=name, path=path), err=True)
    _say_when(name)


def _say_when(name: str) -> None:
    """Whether something goes before it, and what a running server does."""
    setting = next(setting for setting in _settings() if setting.name == name)
    if setting.variable in os.environ:
        say(Message("note: {variable} goes before it", variable=setting.variable), err=True)
    if setting.restart:
        say(Message("a running server takes it when it is started again"), err=True)
    else:
        say(Message("a running server takes it on SIGHUP"), err=True)


def _serve_command() -> click.Command:
    from trilithon.cli.serve.serve import serve

    return serve


def _names() -> list[str]:
    from trilithon.cli.serve.settings import options_of
    from trilithon.settings import MEANINGS, SERVE

    return [*MEANINGS, *(f"{SERVE}.{name}" for name in options_of(_serve_command()))]


def _known(name: str) -> str:
    """Raises UserError for a name that is none."""
    from trilithon.errors import UserError
    from trilithon.suggestions import similar_names

    names = _names()
    if name not in names:
        near = similar_names(name, names, 1) or similar_names(f"serve.{name}", names, 1, 0.8)
        fix = Message("did you mean {name}?", name=near[0]) if near else Message("see: trilithon config list")
        raise UserError(Message("unknown setting {name}; {fix}", name=name, fix=fix))
    return name


def _place(name: str) -> tuple[str, str]:
    """The table of config.toml, empty for its beginning, and the key."""
    table, _, key = name.rpartition(".")
    return table, key


def _settings() -> list[_Setting]:
    from trilithon.cli.serve.settings import RELOADED, VARIABLE, options_of, stated
    from trilithon.settings import (
        MEANINGS,
        SERVE,
        configuration_path,
        environment_settings,
        file_settings,
        load_configuration,
    )

    configuration, path = load_configuration(), str(configuration_path())
    in_file, in_environment = file_settings(), environment_settings()
    settings = [
        _Setting(
            name=name,
            value=getattr(configuration, name),
            source=_variable(name) if name in in_environment else path if name in in_file else _DEFAULT,
            meaning=meaning,
            variable=_variable(name),
            restart=name != "aliases",
        )
        for name, meaning in MEANINGS.items()
    ]
    command = _serve_command()
    values = stated(command)
    context = command.make_context("serve", [])
    for name, option in options_of(command).items():
        part = values.get(name)
        settings.append(
            _Setting(
                name=f"{SERVE}.{name}",
                value=part.value if part else context.params[str(option.name)],
                source=part.source if part else _DEFAULT,
                meaning=(option.help or "").partition(" [default")[0],
                variable=VARIABLE + name.upper(),
                restart=name not in RELOADED,
            )
        )
    return settings


def _variable(name: str) -> str:
    return f"TRILITHON_{name.upper()}"


def _toml_value(name: str, text: str) -> Any:
    """What config.toml holds for the text of a command line. Raises UserError for one that does not fit."""
    from trilithon.cli.serve.settings import check_option
    from trilithon.settings import check_setting

    table, key = _place(name)
    if table:
        value = check_option(_serve_command(), key, text, "value", is_text=True)
    else:
        value = check_setting(key, text, "value")
    return _plain(_absolute(value), as_written=text)


def _absolute(value: Any) -> Any:
    """A path of the command line is meant from here, and the file is read anywhere."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return value.absolute() if isinstance(value, Path) else value


def _plain(value: Any, *, as_written: str = "") -> Any:
    """A value as TOML and JSON have it."""
    from trilithon.settings import Alias

    if isinstance(value, tuple):
        if value and isinstance(value[0], Alias):
            return {part.name: {"model": part.model, "hidden": True} if part.hidden else part.model for part in value}
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else as_written if value is None and as_written else value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    from trilithon.cli.config_file import toml_literal

    plain = _plain(value)
    return "not set" if plain is None else toml_literal(plain)


def _as_json(setting: _Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "value": _plain(setting.value),
        "source": setting.source,
        "meaning": setting.meaning,
        "variable": setting.variable,
        "restart": setting.restart,
    }

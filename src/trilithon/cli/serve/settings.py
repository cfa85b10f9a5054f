"""The options of `trilithon serve` as settings: the table [serve] of config.toml, and variables TRILITHON_SERVE_….

The options are the schema: a setting has the name, the type and the meaning of its option."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.settings import SERVE, configuration_path, file_settings
from trilithon.suggestions import alternatives
from trilithon.units import parse_bytes, parse_duration

__all__ = [
    "RELOADED",
    "VARIABLE",
    "Stated",
    "check_option",
    "keep_alive_seconds",
    "options_of",
    "setting_name",
    "stated",
]

VARIABLE = "TRILITHON_SERVE_"
RELOADED = frozenset(
    {
        *("alias", "allow_image_fetch", "cors", "hidden_alias", "host_name", "keep_alive", "memory_budget", "pin"),
        *("requests_per_minute", "tls_cert", "tls_key", "verbose"),
    }
)
"""What a running server takes on SIGHUP (`cli.serve.reloading`); TLS only where it has TLS already."""


@dataclass(frozen=True, slots=True)
class Stated:
    """`value` as the option's command gets it, `raw` as it is written, `source` the file or the variable."""

    value: Any
    raw: Any
    source: str


def setting_name(option: click.Option) -> str:
    """`host_name` of --host-name."""
    return option.opts[0].removeprefix("--").replace("-", "_")


def options_of(command: click.Command) -> dict[str, click.Option]:
    """By the names of the settings. `--yes` is none: it answers a question of this one start."""
    options = [option for option in command.params if isinstance(option, click.Option) and option.name != "yes"]
    return {setting_name(option): option for option in options}


def stated(command: click.Command, environment: Mapping[str, str] = os.environ) -> dict[str, Stated]:
    """What config.toml and the environment set, which goes before, by the names of the settings.

    Raises UserError for an unknown name, and for a value that the option would refuse."""
    path = str(configuration_path(environment))
    variables = {
        name.removeprefix(VARIABLE).lower(): (name, text)
        for name, text in environment.items()
        if name.startswith(VARIABLE) and text
    }
    rows = [(name, value, path) for name, value in file_settings(environment).get(SERVE, {}).items()]
    rows += [(name, text, variable) for name, (variable, text) in variables.items()]
    return {
        name: Stated(check_option(command, name, value, source, is_text=source != path), value, source)
        for name, value, source in rows
    }


def check_option(command: click.Command, name: str, value: Any, source: str, *, is_text: bool = False) -> Any:
    """The value as the option's command gets it. `is_text`: from the environment, where lists have commas.

    Raises UserError, which begins with `source`."""
    option = options_of(command).get(name)
    if option is None:
        fix = alternatives(name, sorted(options_of(command)))
        setting = f"{SERVE}.{name}"
        raise UserError(Message("{source}: unknown setting {name}; {fix}", source=source, name=setting, fix=fix))
    try:
        value_of_option = option.type_cast_value(click.Context(command), _shaped(option, value, is_text=is_text))
        for part in value_of_option if option.multiple else (value_of_option,):
            _CHECKS.get(name, _accept)(part)
    except (click.BadParameter, UserError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: "~nobody"
        message = error.message if isinstance(error, click.BadParameter) else str(error)
        raise UserError(
            "{source}: {serve}.{name} = {value!r} does not fit: {message}",
            source=source,
            serve=SERVE,
            name=name,
            value=value,
            message=message,
        ) from error
    return value_of_option


def keep_alive_seconds(text: str, *, name: str) -> float:
    """Of "5m", "0", and "-1" or "forever", which are infinite. Raises UserError for anything else."""
    if text.strip() in ("-1", "forever"):
        return float("inf")
    return parse_duration(text, name=name)


def _shaped(option: click.Option, value: Any, *, is_text: bool) -> Any:
    """What click takes for the option. Raises TypeError for what TOML has a better type for."""
    if option.multiple:
        parts = [part.strip() for part in value.split(",")] if is_text else [value] if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise TypeError("write a list of texts")
        return [part for part in parts if part]
    if is_text:
        return str(Path(value).expanduser()) if isinstance(option.type, click.Path) else value
    if option.is_flag:
        if not isinstance(value, bool):
            raise TypeError("write true or false")
        return value
    if isinstance(option.type, click.IntRange):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError("write a whole number")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError("write a text")
    return str(Path(str(value)).expanduser()) if isinstance(option.type, click.Path) else str(value)


def _accept(_: Any) -> None:
    """click's own check is enough."""


def _check_alias(text: str) -> None:
    from trilithon.settings import Alias

    Alias.parse(text)


def _check_origin(text: str) -> None:
    from trilithon.serve.access.origins import Origins

    Origins((text,))


def _check_host_name(text: str) -> None:
    from trilithon.serve.access.hosts import HostNames

    HostNames((text,))


def _check_proxy(text: str) -> None:
    from trilithon.serve.access.proxies import checked_proxies

    checked_proxies((text,))


def _check_root_path(text: str) -> None:
    from trilithon.serve.access.proxies import checked_root_path

    checked_root_path(text)


def _check_placement(text: str) -> None:
    from trilithon.engines.placement_spec import parse_placement
    from trilithon.engines.placing import refuse_server

    if text:
        refuse_server(parse_placement(text))


_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "alias": _check_alias,
    "cors": _check_origin,
    "drain": lambda text: parse_duration(text, name="drain"),
    "hidden_alias": _check_alias,
    "host_name": _check_host_name,
    "keep_alive": lambda text: keep_alive_seconds(text, name="keep_alive"),
    "memory_budget": lambda text: parse_bytes(text, name="memory_budget"),
    "placement": _check_placement,
    "root_path": _check_root_path,
    "trusted_proxy": _check_proxy,
    "response_store": lambda text: parse_bytes(text, name="response_store"),
}

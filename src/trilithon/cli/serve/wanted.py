"""What the user wants of the server: options go before the environment, config.toml and Ollama's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from trilithon.cli.output import say
from trilithon.cli.serve.ollama_environment import ollama_defaults
from trilithon.cli.serve.process import ServeSettings
from trilithon.cli.serve.settings import keep_alive_seconds, options_of, stated
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.serve.access.keys import key_store
from trilithon.serve.access.security import SecurityOptions
from trilithon.serve.app import ServeOptions
from trilithon.settings import Alias, Configuration, load_configuration
from trilithon.units import parse_bytes, parse_duration

__all__ = ["Typed", "Wanted", "wanted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """The command line: `words` by the names of the command's parameters, `names` those that were typed."""

    command: click.Command
    words: Mapping[str, Any]
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`words` are the options in force, by the names of the command's parameters; `named` are no defaults."""

    words: Mapping[str, Any]
    named: frozenset[str]
    configuration: Configuration
    options: ServeOptions
    settings: ServeSettings


def wanted(typed: Typed, environment: Mapping[str, str] = os.environ) -> Wanted:
    """Raises UserError for values that do not fit."""
    options = options_of(typed.command)
    settings = {str(options[name].name): part.value for name, part in stated(typed.command, environment).items()}
    words = dict(typed.words) | {name: value for name, value in settings.items() if name not in typed.names}
    named = typed.names | settings.keys()
    words |= _from_ollama(words, named, environment)
    if (words["tls_cert"] is None) != (words["tls_key"] is None):
        raise UserError("--tls-cert and --tls-key go together; give both")
    configuration = _with_aliases(load_configuration(environment), words)
    return Wanted(
        words=words,
        named=named,
        configuration=configuration,
        options=_serve_options(words, configuration),
        settings=_serve_settings(words),
    )


def _with_aliases(configuration: Configuration, words: Mapping[str, Any]) -> Configuration:
    """Those of the options go before those of config.toml's [aliases]."""
    try:
        aliases = [Alias.parse(text) for text in words["aliases"]]
        aliases += [Alias.parse(text, hidden=True) for text in words["hidden_aliases"]]
    except ValueError as error:
        raise UserError("--alias: {reason}", reason=error) from error
    names = {alias.name.casefold() for alias in aliases}
    kept = (alias for alias in configuration.aliases if alias.name.casefold() not in names)
    return replace(configuration, aliases=(*aliases, *kept))


def _from_ollama(words: Mapping[str, Any], named: frozenset[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Defaults that the user has set for Ollama; which ones, is said. A socket that there is needs no address."""
    bound = words["unix"] is not None or "LISTEN_FDS" in environment
    values, used = ollama_defaults(
        environment, lambda option: option in named or (option in ("host", "port") and bound)
    )
    if used:
        say(Message("from the environment: {names}", names="; ".join(used)), err=True)
    return values


def _serve_options(words: Mapping[str, Any], configuration: Configuration) -> ServeOptions:
    security = SecurityOptions(
        key_store=key_store(configuration),
        api_key_file=words["api_key_file"],
        keys_required=False if words["no_key"] else None,
        cors_origins=words["cors"],
        host_names=words["host_names"],
        trusted_proxies=words["trusted_proxies"],
        root_path=words["root_path"],
        requests_per_minute=words["requests_per_minute"],
        fetch_images=words["allow_image_fetch"],
    )
    return ServeOptions(
        security=security,
        drain_seconds=parse_duration(words["drain"], name="--drain"),
        response_store_bytes=parse_bytes(words["response_store"], name="--response-store"),
    )


def _serve_settings(words: Mapping[str, Any]) -> ServeSettings:
    budget = words["memory_budget"]
    return ServeSettings(
        paths=words["files"],
        placement=words["placement"],
        context=words["context"],
        slots=words["parallel"],
        budget_bytes=parse_bytes(budget, name="--memory-budget") if budget else None,
        keep_alive_seconds=keep_alive_seconds(words["keep_alive"], name="--keep-alive"),
        pins=words["pins"],
    )

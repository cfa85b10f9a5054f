"""The user's settings: a TOML file, overridden by TRILITHON_* variables."""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives
from trilithon.tables import table_beside
from trilithon.units import parse_bytes

__all__ = [
    "MEANINGS",
    "SERVE",
    "Configuration",
    "check_setting",
    "configuration_path",
    "environment_settings",
    "file_settings",
    "load_configuration",
]

MEANINGS: Mapping[str, str] = table_beside(__file__, "settings.toml")
"""Of each setting but those of `serve`."""
SERVE = "serve"
"""The table of config.toml with the options of `trilithon serve`, which `cli.serve.settings` checks."""

_MOST_BYTES = 64 << 10
# The time to read a dotted key grows with the square of its parts.
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a model, for clients: `name` may have wildcards (*). A hidden one is not listed."""

    name: str
    model: str
    hidden: bool = False

    @classmethod
    def parse(cls, text: str, *, hidden: bool = False) -> "Alias":
        """NAME=MODEL. Raises ValueError for other texts."""
        name, equals, model = (part.strip() for part in text.partition("="))
        if not (name and equals and model) or not (name + model).isprintable():
            raise ValueError("write NAME=MODEL; NAME may have wildcards: claude-*=qwen3:4b")
        return cls(name, model, hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """`data` has results and models, `cache` files that can be created again. `builds` are folders with a llama-server,
    `stores` other folders of models in Trilithon's layout, `models` folders of any models; the last two are only read.
    `rkllm_toolkit`, `rknn_toolkit` and `gguf_converter` are virtual environments (or their Python) of conversion tools.
    `engine_table` replaces the table of what can be installed. `pull_hosts` may be asked by pulls over the API though
    their addresses are not public. `aliases` are other names of models for clients of the server. A child must become
    ready within `start_seconds`, and is given up after `hang_seconds` without progress. `engine_memory` is the most
    private memory of a child in bytes: None for what its model needs, 0 for no limit."""

    data: Path
    cache: Path
    builds: tuple[Path, ...] = field(default=())
    stores: tuple[Path, ...] = field(default=())
    models: tuple[Path, ...] = field(default=())
    rkllm_toolkit: Path | None = None
    rknn_toolkit: Path | None = None
    gguf_converter: Path | None = None
    engine_table: Path | None = None
    pull_hosts: tuple[str, ...] = field(default=())
    aliases: tuple[Alias, ...] = field(default=())
    start_seconds: float = 300.0
    hang_seconds: float = 60.0
    engine_memory: int | None = None

    @property
    def results_database(self) -> Path:
        return self.data / "results.sqlite"


def load_configuration(environment: Mapping[str, str] = os.environ) -> Configuration:
    """Read `$XDG_CONFIG_HOME/trilithon/config.toml` (or the file in TRILITHON_CONFIG) and the environment.

    Raises UserError for a file that is not TOML, an unknown key or a value of the wrong type."""
    values: dict[str, Any] = {
        "data": _folder(environment, "XDG_DATA_HOME", ".local/share"),
        "cache": _folder(environment, "XDG_CACHE_HOME", ".cache"),
    }
    file_values = file_settings(environment)
    file_values.pop(SERVE, None)
    values |= _checked(file_values, str(configuration_path(environment)))
    return Configuration(**(values | _checked(environment_settings(environment), "environment")))


def configuration_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Of config.toml, whether it exists or not."""
    named = environment.get("TRILITHON_CONFIG")
    return Path(named) if named else _folder(environment, "XDG_CONFIG_HOME", ".config") / "config.toml"


def file_settings(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What config.toml holds, not checked but for the form of its table of `serve`; empty where there is no file.

    Raises UserError for a file that is not TOML, or that is named and missing."""
    path = configuration_path(environment)
    if not environment.get("TRILITHON_CONFIG") and not path.exists():
        return {}
    values = _read(path)
    if not isinstance(values.get(SERVE, {}), dict):
        raise UserError(
            "{path}: {serve} = {values!r} does not fit: write a table, [{serve}]",
            path=path,
            serve=SERVE,
            values=values[SERVE],
        )
    return values


def environment_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings of this module among the variables TRILITHON_*, as text."""
    known = {field.name for field in fields(Configuration)}
    return {
        name.removeprefix("TRILITHON_").lower(): text
        for name, text in environment.items()
        if text and name.startswith("TRILITHON_") and name.removeprefix("TRILITHON_").lower() in known
    }


def check_setting(name: str, value: Any, source: str) -> Any:
    """The value as `Configuration` has it. Raises UserError, which begins with `source`."""
    return _checked({name: value}, source)[name]


def _folder(environment: Mapping[str, str], variable: str, default: str) -> Path:
    home = Path(environment.get("HOME", "~")).expanduser()
    return Path(environment.get(variable) or home / default) / "trilithon"


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode()
        if len(text) > _MOST_BYTES or _DEEP_KEY.search(text):
            raise RecursionError
        return tomllib.loads(text)
    except OSError as error:
        raise UserError("{path}: {reason}", path=path, reason=error.strerror) from error
    except RecursionError:
        raise UserError(
            "{path} is longer than {kib} KiB or nested too deeply for settings; write NAME = VALUE lines",
            path=path,
            kib=_MOST_BYTES >> 10,
        ) from None
    except ValueError as error:  # not TOML, not UTF-8, an endless number
        raise UserError("{path} is not TOML: {reason}", path=path, reason=error) from error


def _checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked[name] = _CONVERT[name](value)
        except KeyError:
            fix = alternatives(name, sorted((*_CONVERT, SERVE)))
            message = Message("{source}: unknown setting {name}; {fix}", source=source, name=name, fix=fix)
            raise UserError(message) from None
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: "~nobody" is no user's home
            raise UserError(
                "{source}: {name} = {value!r} does not fit: {reason}",
                source=source,
                name=name,
                value=value,
                reason=error,
            ) from error
    return checked


def _folders(value: str | list[str]) -> tuple[Path, ...]:
    if not isinstance(value, str | list):
        raise TypeError("write one folder or a list of folders")
    names = value.split(os.pathsep) if isinstance(value, str) else value
    return tuple(_path(text) for text in names if text != "")


def _path(value: str) -> Path:
    if "\0" in os.fspath(value):
        raise ValueError("a path has no NUL character")
    return Path(value).expanduser()


def _hosts(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("write one host or a list of hosts")
    hosts = tuple(name.strip().lower().removesuffix(".").strip("[]") for name in names if name.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a name or an address; leave out the port and https://")
    return hosts


def _aliases(value: str | dict[str, Any]) -> tuple[Alias, ...]:
    """A table of names, each with its model or {model = …, hidden = true}; in the environment NAME=MODEL,NAME=MODEL."""
    if isinstance(value, str):
        return tuple(Alias.parse(text) for text in value.split(","))
    if not isinstance(value, dict):
        raise TypeError('write a table: "claude-*" = "qwen3:4b"')
    aliases = []
    for name, entry in value.items():
        table = entry if isinstance(entry, dict) else {"model": entry}
        model, hidden = table.get("model"), table.get("hidden", False)
        if table.keys() - {"model", "hidden"} or not isinstance(model, str) or not isinstance(hidden, bool):
            raise ValueError('write "NAME" = "MODEL", or "NAME" = {model = "MODEL", hidden = true}')
        aliases.append(Alias.parse(f"{name}={model}", hidden=hidden))
    return tuple(aliases)


def _seconds(value: str | float) -> float:
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError("write a number of seconds, more than 0")
    return float(value)


def _memory(value: str | int) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool):
        raise TypeError('write "auto", 0 for no limit, or a size such as "6G"')
    return parse_bytes(str(value), name="engine_memory")


_CONVERT: Mapping[str, Any] = {
    "data": _path,
    "cache": _path,
    "builds": _folders,
    "stores": _folders,
    "models": _folders,
    "rkllm_toolkit": _path,
    "rknn_toolkit": _path,
    "gguf_converter": _path,
    "engine_table": _path,
    "pull_hosts": _hosts,
    "aliases": _aliases,
    "start_seconds": _seconds,
    "hang_seconds": _seconds,
    "engine_memory": _memory,
}

"""The texts of systemd's units: templates beside this module, filled in for one program, address and scope."""

import grp
import ipaddress
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from trilithon.errors import UserError
from trilithon.settings import Configuration

__all__ = [
    "MARK",
    "SERVICE",
    "SOCKET",
    "STATE",
    "USER",
    "Scope",
    "ServicePlan",
    "existing_groups",
    "program_words",
    "unit_files",
]

Scope = Literal["user", "system"]

SERVICE, SOCKET = "trilithon.service", "trilithon.socket"
USER, STATE = "trilithon", "/var/lib/trilithon"
"""Of the system service: its user, and the folder with its models and keys."""
MARK = "# Written by trilithon service install"
"""The beginning of every unit that Trilithon wrote: no other is replaced or removed."""

_GROUPS = ("video", "render")
_SYSTEM_FOLDERS = {"TRILITHON_DATA": STATE, "TRILITHON_CACHE": "/var/cache/trilithon", "XDG_CONFIG_HOME": "/etc"}
_FOLDERS = ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRILITHON_CONFIG")
# systemd.exec(5), ProtectHome=yes: these are empty for the service.
_HOMES = ("/home", "/root", "/run/user")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What is installed. `on_demand` adds a socket: the server starts with its first client. `lingers` notes that the
    user's services were made to start at boot with this installation."""

    scope: Scope
    host: str
    port: int
    on_demand: bool = False
    lingers: bool = False

    @property
    def folder(self) -> Path:
        if self.scope == "system":
            return Path("/etc/systemd/system")
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"


def program_words() -> list[str]:
    """This program, as a service calls it: by its path in the environment that it runs in."""
    program = Path(sys.executable).with_name("trilithon")
    return [str(program)] if os.access(program, os.X_OK) else [sys.executable, "-P", "-m", "trilithon.cli"]


def unit_files(plan: ServicePlan, environment: Mapping[str, str] = os.environ) -> dict[Path, str]:
    """Path to text of each unit. Raises UserError when a system service could not read this installation."""
    if plan.scope == "system":
        _require_readable()
    words = [*program_words(), "serve", "--verbose"]
    if not plan.on_demand:
        words += ["--host", plan.host, "--port", str(plan.port)]
    values = {
        "@HEAD@": f"{MARK}{', which let it start at boot' * plan.lingers}; trilithon service uninstall removes it.",
        "@EXEC@": " ".join(_quoted(word, dollar="$$") for word in words),
        "@PROGRAM@": shlex.join(program_words()),
        "@USER@": USER,
        "@GROUPS@": " ".join(existing_groups()),
        "@ENVIRONMENT@": _environment_lines(plan.scope, environment),
    }
    if plan.on_demand:
        values["@LISTEN@"] = "\n".join(f"ListenStream={address}" for address in _addresses(plan.host, plan.port))
    templates = {SERVICE: f"{plan.scope}.service"} | ({SOCKET: SOCKET} if plan.on_demand else {})
    return {plan.folder / name: _filled(template, values) for name, template in templates.items()}


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _quoted(word: str, *, dollar: str = "$") -> str:
    """A word as systemd.syntax(7) and systemd.unit(5) read it; `$` has a meaning in commands. Raises UserError."""
    if not word.isprintable():
        raise UserError("{word!r} cannot stand in a unit of systemd; choose another folder or address", word=word)
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", dollar)):
        word = word.replace(letter, escaped)
    return f'"{word}"' if not word or set(word) & set(" \t'\"\\;") else word


def _environment_lines(scope: Scope, environment: Mapping[str, str]) -> str:
    """The folders and settings that this process has from its environment, which a service does not see."""
    settings = (f"TRILITHON_{field.name.upper()}" for field in fields(Configuration))
    kept = {name: environment[name] for name in (*_FOLDERS, *settings) if environment.get(name)}
    values = _SYSTEM_FOLDERS if scope == "system" else kept
    return "\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in values.items())


def _addresses(host: str, port: int) -> list[str]:
    """For a server on this machine alone both families, as `trilithon serve` listens on localhost. Raises UserError
    for a name, which a socket of systemd cannot have."""
    if host in ("127.0.0.1", "localhost"):
        return [f"127.0.0.1:{port}", f"[::1]:{port}"]
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        raise UserError(
            "{host!r} is no address for --on-demand; write one in numbers, as 0.0.0.0 or ::", host=host
        ) from None
    if "%" in host:
        raise UserError(
            "{host} has a zone, which a socket of systemd cannot have; write the address without it", host=host
        )
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]


def existing_groups() -> list[str]:
    """Those that own the device nodes of GPU and NPU, as far as this system has them."""
    return [group for group in _GROUPS if any(entry.gr_name == group for entry in grp.getgrall())]


def _require_readable() -> None:
    places = {os.path.realpath(place) for place in (program_words()[0], sys.prefix, sys.base_prefix)}
    inside = next((place for place in sorted(places) for home in _HOMES if Path(place).is_relative_to(home)), "")
    if inside:
        raise UserError(
            "{inside} lies in a home folder, which a system service may not read; install Trilithon from "
            "its folder with: sudo python3 -m venv /opt/trilithon && sudo /opt/trilithon/bin/pip install "
            "-c constraints.txt . ; then run: sudo /opt/trilithon/bin/trilithon service install --system",
            inside=inside,
        )

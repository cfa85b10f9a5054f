"""Installing, describing and removing the service: what is written, and the calls of systemctl and loginctl."""

import getpass
import itertools
import os
import pwd
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trilithon.cli.service.units import (
    MARK,
    SERVICE,
    SOCKET,
    STATE,
    USER,
    Scope,
    ServicePlan,
    existing_groups,
    program_words,
    unit_files,
)
from trilithon.errors import TrilithonError, UserError
from trilithon.files import save_text
from trilithon.settings import Configuration

__all__ = [
    "ServiceChange",
    "describe",
    "install",
    "installed_scope",
    "log_command",
    "planned",
    "require_systemd",
    "uninstall",
    "unit_paths",
]

_RUNNING = ("initializing", "starting", "running", "degraded", "maintenance")  # of systemctl is-system-running
_SHOWN = (
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "ActiveEnterTimestamp",
    "Result",
    "NRestarts",
    "MemoryCurrent",
)
_CALL_SECONDS = 120.0  # systemctl waits until the server is ready, and the server's own limit is 90 s
_NO_SHELL = "/usr/sbin/nologin"
_LINGER = Path("/var/lib/systemd/linger")  # where logind keeps the names, see loginctl(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceChange:
    """`preparations` are commands that run before `files` (path to text) are written, `commands` those after it."""

    plan: ServicePlan
    preparations: tuple[tuple[str, ...], ...]
    files: dict[Path, str]
    commands: tuple[tuple[str, ...], ...]


def planned(plan: ServicePlan) -> ServiceChange:
    """Nothing is changed. Raises UserError."""
    control, unit = _control(plan.scope), SOCKET if plan.on_demand else SERVICE
    preparations: list[tuple[str, ...]] = []
    if plan.scope == "system" and not _user_exists():
        groups = ",".join(existing_groups())
        more = ("--groups", groups) if groups else ()
        preparations.append(
            ("useradd", "--system", "--user-group", "--home-dir", STATE, "--shell", _NO_SHELL, *more, USER)
        )
    if plan.scope == "user":
        absent = not (_LINGER / getpass.getuser()).exists()
        plan = replace(plan, lingers=absent or _made_linger(unit_paths("user")))
        preparations += [("loginctl", "enable-linger")] * absent
    commands = [(*control, "daemon-reload"), (*control, "enable", unit), (*control, "restart", unit)]
    if plan.on_demand:  # systemd starts no socket of a running service, nor may that start at boot besides
        commands.insert(1, (*control, "disable", "--now", SERVICE, SOCKET))
    return ServiceChange(plan=plan, preparations=tuple(preparations), files=unit_files(plan), commands=tuple(commands))


def install(change: ServiceChange, configuration: Configuration) -> list[str]:
    """Writes the units and starts the service; returns notes for the user. Raises UserError before anything is
    changed, TrilithonError when the service does not start: then it stays installed, to be looked at."""
    plan, files, notes = change.plan, change.files, []
    require_systemd(plan.scope)
    _require_rights(plan.scope, "install")
    _require_key(plan, configuration)
    for path in unit_paths(plan.scope):
        _require_ours(path)
    for command in change.preparations:
        if failure := _call(command):
            if command[0] != "loginctl":
                raise TrilithonError("{names} failed: {failure}", names=shlex.join(command), failure=failure)
            files = unit_files(replace(plan, lingers=False))
            notes.append(
                f"the service ends when you log out ({failure}); to let it start at boot, run: sudo loginctl "
                f"enable-linger {getpass.getuser()}"
            )
    for path in unit_paths(plan.scope):
        if path.exists() and path not in files:  # the socket of an earlier installation
            _call((*_control(plan.scope), "disable", "--now", path.name))
            path.unlink()
    for path, text in files.items():
        save_text(path, text, mode=0o644)
    for command in change.commands:
        if failure := _call(command):
            raise TrilithonError(_failed(command, failure, plan.scope))
    return notes


def uninstall(scope: Scope) -> list[str]:
    """Stops the service and removes its units; returns what was done. Raises UserError and TrilithonError."""
    require_systemd(scope)
    _require_rights(scope, "uninstall")
    paths = [path for path in unit_paths(scope) if path.exists()]
    for path in paths:
        _require_ours(path)
    lingers = _made_linger(paths)
    control = _control(scope)
    for path in reversed(paths):  # the socket first: a client would start the server again
        if failure := _call((*control, "disable", "--now", path.name)):
            raise TrilithonError(_failed((*control, "disable", "--now", path.name), failure, scope))
    for path in paths:
        path.unlink()
    _call((*control, "daemon-reload"))
    _call((*control, "reset-failed", SERVICE))
    lines = [f"removed {path}" for path in paths]
    if lingers and not _call(("loginctl", "disable-linger")):
        lines.append("your services end when you log out again: loginctl disable-linger")
    return lines


def installed_scope(scope: Scope | None) -> Scope:
    """Where a service is installed: the one that was asked for, or the user's before the system's. Raises UserError."""
    scopes: tuple[Scope, ...] = (scope,) if scope else ("user", "system")
    for candidate in scopes:
        if any(path.exists() for path in unit_paths(candidate)):
            return candidate
    where = f" as a service of the {scope}" if scope else ""
    raise UserError("Trilithon is not installed{where}; run: trilithon service install", where=where)


def describe(scope: Scope) -> dict[str, Any]:
    """State and address of the installed service. Raises UserError where systemd does not run."""
    require_systemd(scope)
    properties = [word for name in _SHOWN for word in ("-p", name)]
    command = [*_control(scope), "show", SERVICE, *properties]
    lines = _output(command).splitlines()
    shown = dict(line.partition("=")[::2] for line in lines)
    on_demand = unit_paths(scope)[1].exists()
    enabled = _output([*_control(scope), "is-enabled", SOCKET if on_demand else SERVICE]).strip()
    listens = on_demand and _output([*_control(scope), "is-active", SOCKET]).strip() == "active"
    memory = shown.get("MemoryCurrent", "")
    return {
        "scope": scope,
        "unit": str(unit_paths(scope)[0]),
        "on_demand": on_demand,
        "listens": listens,
        "state": shown.get("ActiveState", "unknown"),
        "detail": shown.get("SubState", ""),
        "enabled": enabled,
        "address": _address_of(scope),
        "pid": int(shown.get("MainPID") or 0) or None,
        "since": shown.get("ActiveEnterTimestamp") or None,
        "result": shown.get("Result", ""),
        "restarts": int(shown.get("NRestarts") or 0),
        "memory_bytes": int(memory) if memory.isdecimal() and int(memory) < 1 << 63 else None,
    }


def log_command(scope: Scope, lines: int, *, follow: bool) -> list[str]:
    """The call of journalctl. Raises UserError where there is none."""
    if shutil.which("journalctl") is None:
        raise UserError("this system has no journalctl; the log of `trilithon serve --verbose` is on its stderr")
    unit = ["--user-unit" if scope == "user" else "--unit", SERVICE]
    return ["journalctl", *unit, "--output", "cat", "--lines", str(lines), *["--follow"] * follow, "--no-pager"]


def require_systemd(scope: Scope) -> None:
    """Raises UserError where no systemd answers."""
    if shutil.which("systemctl") is None or _output([*_control(scope), "is-system-running"]).strip() not in _RUNNING:
        whose = "no systemd runs for this user" if scope == "user" else "this system does not run systemd"
        raise UserError("{whose}; start the server yourself with: trilithon serve", whose=whose)


def _control(scope: Scope) -> tuple[str, ...]:
    return ("systemctl", "--user") if scope == "user" else ("systemctl",)


def unit_paths(scope: Scope) -> tuple[Path, Path]:
    folder = ServicePlan(scope=scope, host="", port=0).folder
    return folder / SERVICE, folder / SOCKET


def _made_linger(paths: Iterable[Path]) -> bool:
    """Whether an installation of these units made the user's services start at boot."""
    heads = (path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for path in paths if path.exists())
    return any(head.startswith(MARK) and "start at boot" in head for head in heads)


def _require_ours(path: Path) -> None:
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise UserError(
            "{path} was not written by trilithon service install; move it away, and run this again", path=path
        )


def _require_rights(scope: Scope, command: str) -> None:
    if scope == "system" and os.geteuid():
        program = shlex.join(program_words())
        raise UserError(
            "a service of the system needs root; run: sudo {program} service {command} --system",
            program=program,
            command=command,
        )


def _require_key(plan: ServicePlan, configuration: Configuration) -> None:
    """Raises UserError for an address that other machines reach while there is no key: the server would not start."""
    from trilithon.serve.access.hosts import is_loopback
    from trilithon.serve.access.keys import keys

    if plan.scope == "system":
        configuration = replace(configuration, data=Path(STATE))
    if is_loopback(plan.host) or keys(configuration):
        return
    add = "trilithon key add NAME"
    if plan.scope == "system":
        add = f"sudo -u {USER} TRILITHON_DATA={STATE} {shlex.join(program_words())} key add NAME"
        add += "" if _user_exists() else " after an installation without --host, which creates that user"
    raise UserError("{host} is reachable from other machines, and there is no key; run: {add}", host=plan.host, add=add)


def _user_exists() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _environment() -> dict[str, str]:
    """With the place of the user manager, which is not set after `su` and in some SSH sessions."""
    runtime = f"/run/user/{os.geteuid()}"
    named = {} if os.environ.get("XDG_RUNTIME_DIR") or not Path(runtime).is_dir() else {"XDG_RUNTIME_DIR": runtime}
    return {**os.environ, **named, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env=_environment(),
        stdin=subprocess.DEVNULL,
        timeout=_CALL_SECONDS,
    )


def _output(command: Sequence[str]) -> str:
    return _run(command).stdout


def _call(command: Sequence[str]) -> str:
    """Why the command failed, in one line; empty when it did not."""
    try:
        done = _run(command)
    except FileNotFoundError:
        return f"there is no {command[0]}"
    except subprocess.TimeoutExpired:
        return f"no answer within {_CALL_SECONDS:g} s"
    if not done.returncode:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"


def _failed(command: Sequence[str], failure: str, scope: Scope) -> str:
    return f"{shlex.join(command)} failed: {failure}; see: trilithon service logs --{scope}"


def _address_of(scope: Scope) -> str:
    """From the unit that was written: the socket's first address, or the words of the server."""
    service, socket = unit_paths(scope)
    if socket.exists():
        lines = socket.read_text(encoding="utf-8").splitlines()
        return next((f"http://{line.partition('=')[2]}" for line in lines if line.startswith("ListenStream=")), "")
    lines = service.read_text(encoding="utf-8").splitlines()
    words = next((line.split() for line in lines if line.startswith("ExecStart=")), [])
    after = dict(itertools.pairwise(words))
    host, port = after.get("--host", ""), after.get("--port", "")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""`trilithon service`: the server as a service of systemd, which starts at boot and again after a crash."""

import json
import shlex
import subprocess
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import say
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.service.systemd import ServiceChange
    from trilithon.cli.service.units import Scope

__all__ = ["service"]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_USER = click.option("--user", "scope", flag_value="user", type=str, help="The service of this user.")
_SYSTEM = click.option("--system", "scope", flag_value="system", type=str, help="The service of the system.")


@click.group("service")
def service() -> None:
    """Run the server as a service of systemd: from boot on, and again after a crash.

    The service of a user has that user's models and keys, and needs no root. The service of the system runs as a user
    of its own, with minimal rights."""


@service.command("install")
@click.option("--user", "scope", flag_value="user", type=str, help="For this user. [default unless root]")
@click.option("--system", "scope", flag_value="system", type=str, help="For the system, as the user trilithon.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(1, 65535), default=11435, show_default=True, help="The port.")
@click.option("--on-demand", is_flag=True, help="Start the server when the first client connects.")
@click.option("--dry-run", is_flag=True, help="Print the units and the commands, and change nothing.")
@_JSON
def install_command(scope: "Scope | None", host: str, port: int, on_demand: bool, dry_run: bool, as_json: bool) -> None:
    """Install the service, or change it, and start it."""
    import os

    from trilithon.cli.service.systemd import describe, install, planned
    from trilithon.cli.service.units import ServicePlan
    from trilithon.settings import load_configuration

    chosen: Scope = scope or ("user" if os.geteuid() else "system")
    change = planned(ServicePlan(scope=chosen, host=host, port=port, on_demand=on_demand))
    if dry_run:
        _print_plan(change, as_json=as_json)
        return
    notes = install(change, load_configuration())
    if as_json:
        say(json.dumps({"files": [str(path) for path in change.files], "notes": notes} | describe(chosen), indent=2))
        return
    for path in change.files:
        say(Message("wrote {path}", path=path))
    for note in notes:
        say(Message("note: {text}", text=note), err=True)
    address = describe(chosen)["address"]
    if on_demand:
        say(Message("the server starts with its first client: {address}", address=address), wrap=True)
    else:
        say(Message("the server runs: {address}", address=address), wrap=True)
    say(Message("look at it with: trilithon service status; remove it with: trilithon service uninstall"), err=True)


@service.command("status")
@_USER
@_SYSTEM
@_JSON
@click.pass_context
def status(context: click.Context, scope: "Scope | None", as_json: bool) -> None:
    """Show whether the service runs, and where. Exit code 1 when it neither runs nor starts with its first client."""
    from trilithon.cli.service.systemd import describe, installed_scope
    from trilithon.units import format_bytes

    facts = describe(installed_scope(scope))
    if as_json:
        say(json.dumps(facts, indent=2))
    else:
        since = f" since {facts['since']}" if facts["since"] and facts["state"] == "active" else ""
        lines = {
            "state": f"{facts['state']} ({facts['detail']}){since}",
            "at boot": facts["enabled"] + ", starts with its first client" * facts["on_demand"],
            "address": facts["address"],
            "process": facts["pid"],
            "memory": facts["memory_bytes"] and format_bytes(facts["memory_bytes"]),
            "restarts": facts["restarts"],
            "unit": f"{facts['unit']} (of the {facts['scope']})",
        }
        for name, text in lines.items():
            if text:
                say(f"{name:<10}{text}", wrap=True)
        if facts["state"] == "failed":
            say(Message("why: trilithon service logs --{scope}", scope=facts["scope"]), err=True)
    context.exit(0 if facts["state"] == "active" or facts["listens"] else 1)


@service.command("logs")
@_USER
@_SYSTEM
@click.option("-n", "--lines", type=click.IntRange(1), default=50, show_default=True, help="The last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
@click.pass_context
def logs(context: click.Context, scope: "Scope | None", lines: int, follow: bool) -> None:
    """Print the log of the service: one JSON object per request, and its messages."""
    from trilithon.cli.service.systemd import installed_scope, log_command

    context.exit(subprocess.run(log_command(installed_scope(scope), lines, follow=follow)).returncode)


@service.command("uninstall")
@_USER
@_SYSTEM
def uninstall_command(scope: "Scope | None") -> None:
    """Stop the service and remove its units. Models, keys and results stay."""
    from trilithon.cli.service.systemd import installed_scope, uninstall
    from trilithon.cli.service.units import STATE, USER

    chosen = installed_scope(scope)
    for line in uninstall(chosen):
        say(line)
    if chosen == "system":
        message = Message(
            "its models and keys stay in {folder}; to remove them: sudo userdel {user} && sudo rm -r {folder}",
            folder=STATE,
            user=USER,
        )
        say(message, err=True)


def _print_plan(change: "ServiceChange", *, as_json: bool) -> None:
    commands = [shlex.join(command) for command in (*change.preparations, *change.commands)]
    if as_json:
        files = {str(path): text for path, text in change.files.items()}
        say(json.dumps({"files": files, "commands": commands}, indent=2))
        return
    for path, text in change.files.items():
        say(f"# {path}\n{text}")
    say("# then")
    for command in commands:
        say(command)

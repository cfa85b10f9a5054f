"""`trilithon ps` and `trilithon stop`: the models that a running server has loaded, and unloading one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.models.commands import complete_model
from trilithon.cli.output import say, shown
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message
from trilithon.units import format_bytes, format_duration

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.serve.server_client import Server

__all__ = ["handover_lines", "plan_lines", "ps", "stop", "until"]

_TITLES = (
    *(Message("NAME"), Message("ID"), Message("SIZE"), Message("PLACEMENT"), Message("CONTEXT"), Message("UNTIL")),
)
_ID_DIGITS = 12
# A server says "for ever" with a date that nobody will see.
_FOR_EVER = timedelta(days=365)


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(as_json: bool) -> None:
    """List the models that the running server has loaded (TRILITHON_HOST; default 127.0.0.1:11435)."""
    from trilithon.cli.models.rows import aligned

    with _server() as server:
        models = server.loaded()
    if as_json:
        say(json.dumps(models, indent=2, ensure_ascii=False))
    elif models:
        notes = (*handover_lines(models), *plan_lines(models))
        say("\n".join([*aligned([tuple(map(shown, _TITLES)), *map(_row, models)]), *notes]), wrap=True)
    else:
        say(Message("no model is loaded"), err=True)


@click.command("stop")
@click.argument("model", shell_complete=complete_model)
def stop(model: str) -> None:
    """Unload MODEL from the running server, after its running requests."""
    from trilithon.models.store.resolve import model_name

    wanted = model_name(model)
    with _server() as server:
        known = {str(loaded.get("name", "")) for loaded in server.loaded()}
        if not any(model_name(name).same_as(wanted) for name in known):
            raise UserError("{wanted} is not loaded; see: trilithon ps", wanted=wanted)
        server.unload(model)
    say(Message("{model} is unloaded", model=wanted), err=True)


def _server() -> "Server":
    from trilithon.cli.serve.server_client import address, running_server

    server = running_server()
    if server is None:
        raise TrilithonError("no server answers at {address}; start one: trilithon serve", address=address())
    return server


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(model.get("name", "")),
        str(model.get("digest", ""))[:_ID_DIGITS],
        shown(format_bytes(int(model.get("size") or 0))),
        str(model.get("placement") or "-"),
        str(model.get("context_length") or "-"),
        shown(until(str(model.get("expires_at", "")), datetime.now(UTC))),
    )


def handover_lines(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each model whose handover is paused or off."""
    for model in models:
        handover = model.get("handover") or {}
        if handover.get("state", "active") != "active":
            seconds = handover.get("retry_in_seconds")
            retry = "" if seconds is None else f", tried again in {format_duration(seconds)}"
            yield f"{model.get('name', '')}: handover {handover['state']}{retry}: {handover.get('reason', '')}"


def plan_lines(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each model whose plan is stale."""
    for model in models:
        plan = model.get("plan") or {}
        if plan.get("stale"):
            yield (
                f"{model.get('name', '')}: its plan is stale: {', '.join(plan['stale'])}; "
                f"renew it: {plan.get('renewal', '')}"
            )


def until(expires_at: str, now: datetime) -> str:
    try:
        left = datetime.fromisoformat(expires_at) - now
    except (TypeError, ValueError):  # TypeError: without a zone
        return expires_at or "-"
    if left > _FOR_EVER:
        return Message("for ever")
    if left <= timedelta():
        return Message("now")
    return Message("in {duration}", duration=format_duration(left.total_seconds()))

"""`trilithon setup`: what a new machine needs, with one question each; it can be stopped, resumed and undone."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import agreed, say, shown
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.board.doctor import Finding
    from trilithon.cli.setup.steps import SetupStep
    from trilithon.files import JsonStore
    from trilithon.settings import Configuration

__all__ = ["setup"]

_STOP_SECONDS = 60.0  # of a compiler that is told to stop


@click.command("setup")
@click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")
@click.option("--model", metavar="MODEL", help="Fetch this model. [default: one that fits the memory]")
@click.option("--undo", is_flag=True, help="Take back what earlier calls changed.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Show what would be offered on the machine in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what is offered, or what was changed, and do nothing.")
def setup(yes: bool, model: str | None, undo: bool, root: Path | None, as_json: bool) -> None:
    """Look at this machine, and offer what it lacks: the NPU's runtime, a model, a faster build, a service.

    Each step is a command of this program, which is shown. Stopped in between, the next call goes on. --undo takes the
    steps back, the last one first; what was there before stays."""
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    if undo:
        _undo(configuration, as_json=as_json)
        return
    findings, steps = _look(configuration, model, root)
    if as_json:
        rows = [asdict(step) for step in steps]
        say(json.dumps({"offers": rows, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return
    _print_findings(findings)
    if root is not None or not steps:
        for step in steps:
            say(shown(step.question), wrap=True)
            say(f"  trilithon {shlex.join(step.command)}")  # to be copied
        if not steps:
            say(shown(Message("nothing else is missing; {talk}", talk=_first_words(configuration))), err=True)
        return
    if not yes and not sys.stdin.isatty():
        raise UserError("there is no terminal to ask on; add --yes to agree to every step, or see them with --json")
    for step in steps:
        _offer(step, configuration, yes=yes)
    done = Message("done; {talk}. To take it back: trilithon setup --undo", talk=_first_words(configuration))
    say(shown(done), err=True)


def _first_words(configuration: "Configuration") -> Message:
    from trilithon.cli.setup.steps import chat_models

    names = chat_models(configuration)
    return Message("talk to a model with: trilithon run {name}", name=names[0] if names else "demo")


def _look(
    configuration: "Configuration", model: str | None, root: Path | None
) -> "tuple[list[Finding], list[SetupStep]]":
    from trilithon.board.doctor import findings
    from trilithon.board.snapshot import read_board
    from trilithon.board.sysfs import THIS_MACHINE, Machine
    from trilithon.cli.setup.steps import offered_steps

    machine = THIS_MACHINE if root is None else Machine(root)
    board = read_board(machine)
    worth = [finding for finding in findings(board, machine) if finding.severity in ("warning", "problem")]
    running = {row["name"] for row in _changes(configuration).read() or [] if _is_running(row)}
    return worth, [step for step in offered_steps(board, configuration, model) if step.name not in running]


def _print_findings(findings: "list[Finding]") -> None:
    """What a setup without root cannot change. Nothing of it is run."""
    for finding in findings:
        fix = f"\n  {'?' if finding.look else '→'} {shown(finding.fix)}" if finding.fix else ""
        say(f"{shown(finding.subject)}: {shown(finding.message)}{fix}", wrap=True)


def _offer(step: "SetupStep", configuration: "Configuration", *, yes: bool) -> None:
    """Raises TrilithonError when the command fails, and Abort when it is stopped: the next setup offers it again."""
    if yes:
        say(shown(step.question), err=True)
    elif not agreed(step.question):
        return
    say(f"$ trilithon {shlex.join(step.command)}", err=True)
    _record(asdict(step), configuration)  # before it runs: what a killed command left can be taken back too
    before = _model_names(configuration)
    if step.background:
        log = configuration.cache / "setup.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            child = _started(step.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        _record(asdict(step) | {"process": _identity(child.pid)}, configuration)
        say(shown(Message("it runs in the background; its output goes to {log}", log=log)), err=True)
    elif code := _started(step.command).wait():
        if code == 130:
            raise click.Abort
        raise TrilithonError(
            "trilithon {command} failed; the next trilithon setup offers it again", command=shlex.join(step.command)
        )
    if step.name == "model":  # the store chooses the name of a file that was fetched by its address
        _record(asdict(step) | {"undo": ["rm", *sorted(_model_names(configuration) - before)]}, configuration)


def _undo(configuration: "Configuration", *, as_json: bool) -> None:
    from trilithon.cli.setup.steps import remaining_undo

    store = _changes(configuration)
    rows = store.read() or []
    if as_json:
        say(json.dumps({"changes": rows}, indent=2))
        return
    if not rows:
        say(shown(Message("setup changed nothing that is still there")), err=True)
    while rows:
        row = rows.pop()
        _stop(row)
        if words := remaining_undo(row["name"], row["undo"], configuration):
            say(f"$ trilithon {shlex.join(words)}", err=True)
            if _started(words).wait():
                raise TrilithonError(
                    "{name} could not be taken back; run trilithon setup --undo again", name=row["name"]
                )
        store.write(rows)


def _identity(pid: int) -> list[int]:
    """The number of a process and when it started: together they name no other one. Empty when it has ended."""
    from trilithon.board.processes import read_process

    state = read_process(pid)
    return [] if state is None or state.ended else [pid, state.start_ticks]


def _is_running(row: dict[str, Any]) -> bool:
    """Whether the step's command still runs in the background."""
    return bool(row["process"]) and row["process"] == _identity(row["process"][0])


def _stop(row: dict[str, Any]) -> None:
    """Ends the command of a step in the background. Raises TrilithonError when it does not end."""
    if not _is_running(row):
        return
    say(shown(Message("stopping trilithon {command}", command=shlex.join(row["command"]))), err=True)
    os.kill(row["process"][0], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _is_running(row):
        if time.monotonic() > deadline:
            raise TrilithonError(
                "process {number} does not end; run trilithon setup --undo again", number=row["process"][0]
            )
        time.sleep(0.05)


def _record(change: dict[str, Any], configuration: "Configuration") -> None:
    store = _changes(configuration)
    with store.locked():
        store.write([*(row for row in store.read() or [] if row["name"] != change["name"]), change])


def _model_names(configuration: "Configuration") -> set[str]:
    from trilithon.models.store.model_store import ModelStore

    with ModelStore.open(configuration) as store:
        return {str(manifest.name) for manifest in store.list()}


def _started(words: Any, **more: Any) -> "subprocess.Popen[bytes]":
    from trilithon.cli.service.units import program_words

    return subprocess.Popen([*program_words(), *words], env=dict(os.environ), **more)


def _changes(configuration: "Configuration") -> "JsonStore[list[dict[str, Any]]]":
    """The steps that were begun, in order."""
    from trilithon.files import JsonStore

    def parse(rows: Any) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "name": str(row["name"]),
                "command": [str(word) for word in row["command"]],
                "undo": [str(word) for word in row["undo"]],
                "process": [int(number) for number in row.get("process", ())],
            }
            for row in rows
        ]

    return JsonStore(path=configuration.data / "setup.json", parse=parse, fix="remove it; what setup did stays then")

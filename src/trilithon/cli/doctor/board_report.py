"""`trilithon board-report`: one archive that describes a board, for a bug report, without what identifies its owner."""

import contextlib
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import agreed, say
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.board.capture.redaction import Redactor
    from trilithon.settings import Configuration

__all__ = ["board_report"]

_FILE = click.argument("file", type=click.Path(path_type=Path))
_CAMPAIGN_WORDS = ("--test", "pp", "--test", "tg", "-p", "128", "-n", "32", "-r", "3", "--progress", "json")


@click.group("board-report", invoke_without_command=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file. [default: board-report-CHIP-DATE.zip]")
@click.option("--with-bench", is_flag=True, help="Also measure the demo model for a short time.")
@click.option("--no-check", is_flag=True, help="Leave out the check of the engines with a tiny model.")
@click.option("-y", "--yes", is_flag=True, help="Write the file without asking.")
@click.pass_context
def board_report(context: click.Context, output: Path | None, with_bench: bool, no_check: bool, yes: bool) -> None:
    """Write an archive that describes this board, for a bug report.

    It has what Trilithon read of the machine, versions, the check of each engine, and what doctor says. Serial numbers,
    MAC addresses, names of the host and of users, keys and paths of the home folder are removed. The content is
    shown before the file is written."""
    if context.invoked_subcommand is not None:
        return
    from trilithon.cli.doctor.report_archive import member_texts, write_members
    from trilithon.settings import load_configuration

    members = _members(load_configuration(), check=not no_check, bench=with_bench)
    texts = member_texts(members)
    chip = re.sub(r"[^A-Za-z0-9]+", "-", members["doctor.json"]["board"]["chip"]).strip("-") or "unknown"
    file = output or Path(f"board-report-{chip}-{datetime.now(UTC):%Y%m%d}.zip")
    _show_members(texts)
    if not yes and not _confirmed(file):
        raise UserError("nothing was written; add --yes to write without a question")
    write_members(file, texts)
    say(str(file))
    say(Message("look through it with: trilithon board-report show {file}", file=file), err=True)


@board_report.command("show")
@_FILE
@click.option("--member", help="Print this member whole, for example machine.json.")
def show(file: Path, member: str | None) -> None:
    """Show what the archive FILE contains."""
    from trilithon.cli.doctor.report_archive import printable_text, read_report

    texts = {name: printable_text(text) for name, text in read_report(file).members.items()}
    if member is None:
        _show_members(texts)
    elif member in texts:
        say(texts[member], nl=False)
    else:
        raise UserError(
            "{file} has no member {member}; it has {names}", file=file, member=member, names=", ".join(texts)
        )


@board_report.command("tree")
@_FILE
def tree(file: Path) -> None:
    """Print the machine in the archive FILE in the form of tests/board/trees."""
    from trilithon.board.capture.trees import as_tree
    from trilithon.cli.doctor.report_archive import read_report

    say(as_tree(read_report(file).machine), nl=False)


def _confirmed(file: Path) -> bool:
    return sys.stdin.isatty() and agreed(Message("Write {file}?", file=file))


def _show_members(texts: Mapping[str, str]) -> None:
    """The size of each member, and each path of the machine with the size of what was read there."""
    for name, text in texts.items():
        say(f"{name:<16} {len(text.encode()):>9} bytes")
    for path, entry in json.loads(texts["machine.json"])["paths"].items():
        content = entry.get("text") or entry.get("base64") or ""
        state = f"{len(content)} characters" if content else entry["access"]
        say(f"  {path}  {state}")


def _members(configuration: "Configuration", *, check: bool, bench: bool) -> dict[str, Any]:
    """The members of the archive by name. What doctor says is made from the redacted capture, so that the archive
    gives the same again."""
    from trilithon import __version__
    from trilithon.board.capture.redaction import Redactor
    from trilithon.board.capture.replay import CapturedMachine
    from trilithon.board.doctor import Finding, findings
    from trilithon.board.snapshot import read_board
    from trilithon.board.tuning import record as tuning_record
    from trilithon.cli.doctor.doctor import EngineRow, report
    from trilithon.cli.doctor.report_archive import FORMAT
    from trilithon.cli.doctor.rows import engine_findings, engine_rows

    redactor = Redactor.of_this_user()
    folders = [redactor.text(str(folder)) for folder in (configuration.data, configuration.cache)]
    capture = _capture(configuration, redactor)
    machine = CapturedMachine.of(capture, Path("machine.json"))
    board = read_board(machine, [Path(folder) for folder in folders])
    not_of_files = [*tuning_record.findings(configuration.data), *engine_findings()]
    other = [Finding(**redactor.values(asdict(finding))) for finding in not_of_files]
    rows = [EngineRow(**redactor.values(asdict(row))) for row in engine_rows(board)]
    heading = {
        "format": FORMAT,
        "trilithon": __version__,
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "python": platform.python_version(),
        "packages": _packages(),
        "folders": folders,
        "other_findings": [asdict(finding) for finding in other],
    }
    doctor = report(board, [*findings(board, machine), *other], rows)
    members: dict[str, Any] = {"report.json": heading, "doctor.json": doctor, "machine.json": capture}
    if check:
        members["engines.log"] = redactor.text(_output("engines", "check", "--json"))
    if bench:
        members["bench.log"] = redactor.text(_output("bench", *_CAMPAIGN_WORDS, "-o", "jsonl"))
    return members


def _capture(configuration: "Configuration", redactor: "Redactor") -> dict[str, Any]:
    """Everything that the readers of `trilithon.board` read here, sensors and clocks included."""
    from trilithon.board.capture.recorder import Recorder
    from trilithon.board.capture.redaction import redacted_capture
    from trilithon.board.doctor import findings
    from trilithon.board.sensors.sensors import Sensors
    from trilithon.board.snapshot import read_board
    from trilithon.board.tuning.tunables import tunables

    recorder = Recorder()
    findings(read_board(recorder, (configuration.data, configuration.cache)), recorder)
    for tunable in tunables(recorder):
        tunable.changes(recorder)
    with Sensors(recorder):
        pass
    return redacted_capture(recorder.capture(), redactor)


def _packages() -> dict[str, str]:
    """Versions of Trilithon's dependencies that are installed."""
    versions = {}
    for requirement in metadata.requires("trilithon") or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _output(*words: str) -> str:
    """What a command of this program prints, with its exit code."""
    command = f"trilithon {shlex.join(words)}"
    say(Message("running {command}", command=command), err=True)
    done = subprocess.run([sys.executable, "-P", "-m", "trilithon.cli", *words], capture_output=True, check=False)
    printed = (done.stderr + done.stdout).decode(errors="replace")
    return f"$ {command}\n{printed}exit code {done.returncode}\n"

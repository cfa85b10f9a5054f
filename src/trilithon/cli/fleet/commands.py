"""`trilithon fleet`: several boards, their addresses and keys, what each one has, and one address for all of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilithon.cli.fleet.ask import ask_command
from trilithon.cli.fleet.serve import serve_command
from trilithon.cli.output import say, shown
from trilithon.errors import TrilithonError
from trilithon.language import Message
from trilithon.units import format_bytes

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from trilithon.fleet.boards import FleetBoard
    from trilithon.fleet.state import BoardState

__all__ = ["complete_board", "fleet"]

_TITLES = ("BOARD", "ADDRESS", "MACHINE", "MEMORY", "VERSION", "STATE")
_MODEL_TITLES = ("MODEL", "BOARD", "PLACEMENT", "TOKENS/S")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def complete_board(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trilithon.fleet.boards import boards
    from trilithon.settings import load_configuration

    return [board.name for board in boards(load_configuration()) if board.name.startswith(incomplete)]


@click.group("fleet")
def fleet() -> None:
    """Put several boards behind one address, and compare them.

    Each board runs `trilithon serve`. `trilithon fleet add` remembers it on this machine, and `trilithon fleet serve`
    passes requests on to the boards that have the model."""


fleet.add_command(serve_command)
fleet.add_command(ask_command)


@fleet.command("add")
@click.argument("board", metavar="NAME=URL")
@click.option("--ssh", default="", metavar="USER@HOST", help="Make a key on the board over ssh, and measure there.")
@click.option("--key-file", type=_FILE, help="A file with the board's key, readable for you alone (mode 600).")
@click.option("--ca", "ca_file", type=_FILE, help="Trust certificates that these sign (PEM). [default: the system's]")
@click.option("--private-network", is_flag=True, help="Nobody else listens between here and the board: allow http://.")
@_JSON
def add(
    board: str, ssh: str, key_file: Path | None, ca_file: Path | None, private_network: bool, as_json: bool
) -> None:
    """Add a board: fleet add rock1=https://10.0.0.11:11435.

    Its key comes from --key-file, from the environment variable TRILITHON_BOARD_KEY, or is made with --ssh."""
    from trilithon.fleet.boards import add_board, boards, parse_board
    from trilithon.fleet.state import BoardUnreachable, ask_board
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    new = parse_board(board, ssh=ssh, ca_file=ca_file, private_network=private_network)
    for known in boards(configuration):  # before a key is made
        if new.name == known.name or new.url == known.url:
            add_board(configuration, new)
    try:
        new, key = _with_key(new, key_file)
        state = ask_board(new, key)
    except BoardUnreachable as problem:
        if key_file is None and new.key_file:
            Path(new.key_file).unlink(missing_ok=True)
        raise TrilithonError("board {name} {problem}", name=new.name, problem=problem) from problem
    add_board(configuration, new)
    _print([new], [state], as_json=as_json)


def _with_key(board: "FleetBoard", key_file: Path | None) -> "tuple[FleetBoard, str]":
    import os
    from dataclasses import replace

    from trilithon.fleet.boards import KEY_VARIABLE, board_key, keep_key
    from trilithon.fleet.over_ssh import make_board_key
    from trilithon.fleet.state import require_server
    from trilithon.settings import load_configuration

    if key_file is not None:
        board = replace(board, key_file=str(key_file.absolute()))
        return board, board_key(board)
    key = os.environ.get(KEY_VARIABLE, "")
    if board.ssh and not key:
        require_server(board)  # before a key is made there
        key = make_board_key(board)
    return (keep_key(load_configuration(), board, key) if key else board), key


@fleet.command("list")
@_JSON
def list_command(as_json: bool) -> None:
    """List the boards: machine, version, whether they are up, and their models with placement and speed."""
    from trilithon.fleet.boards import boards
    from trilithon.fleet.state import states_of
    from trilithon.settings import load_configuration

    known = boards(load_configuration())
    if not known and not as_json:
        say(shown(Message("there are no boards yet; add one: trilithon fleet add NAME=https://HOST:PORT")), err=True)
        return
    _print(known, states_of(known), as_json=as_json)


@fleet.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="BOARD...", shell_complete=complete_board)
def remove(names: tuple[str, ...]) -> None:
    """Forget boards, with their keys here. Revoke a key on the board: trilithon key rm."""
    from trilithon.fleet.boards import remove_board
    from trilithon.settings import load_configuration

    for name in names:
        remove_board(load_configuration(), name)
        say(shown(Message("removed {name}", name=name)), err=True)


@fleet.command("drain")
@click.argument("names", nargs=-1, required=True, metavar="BOARD...", shell_complete=complete_board)
def drain(names: tuple[str, ...]) -> None:
    """Send no new requests to boards; those that run there end as usual."""
    _set_drained(names, drained=True)


@fleet.command("undrain")
@click.argument("names", nargs=-1, required=True, metavar="BOARD...", shell_complete=complete_board)
def undrain(names: tuple[str, ...]) -> None:
    """Send requests to boards again."""
    _set_drained(names, drained=False)


def _set_drained(names: tuple[str, ...], *, drained: bool) -> None:
    from dataclasses import replace

    from trilithon.fleet.boards import change_board, named_boards
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    for board in named_boards(configuration, names):  # all names are right, or nothing is changed
        change_board(configuration, board.name, lambda known: replace(known, drained=drained))
        text = Message("{name} gets no new requests", name=board.name)
        say(shown(text if drained else Message("{name} gets requests", name=board.name)), err=True)


def _print(known: "Sequence[FleetBoard]", states: "Sequence[BoardState]", *, as_json: bool) -> None:
    from trilithon.cli.models.rows import aligned

    if as_json:
        rows = [
            {"name": board.name, "url": board.url, "ssh": board.ssh, "drained": board.drained, "up": not state.problem}
            | state.as_json()
            for board, state in zip(known, states, strict=True)
        ]
        say(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    lines = [_row(board, state) for board, state in zip(known, states, strict=True)]
    models = [
        (model.name, state.name, model.placement or model.refusal, _rate(model.tokens_per_second))
        for state in states
        for model in state.models
    ]
    say("\n".join(aligned([_TITLES, *lines])), wrap=True)
    if models:
        say("\n" + "\n".join(aligned([_MODEL_TITLES, *sorted(models)])), wrap=True)


def _row(board: "FleetBoard", state: "BoardState") -> tuple[str, ...]:
    machine = " ".join(part for part in (state.machine, f"({state.chip})" if state.chip else "") if part)
    memory = format_bytes(state.memory_bytes) if state.memory_bytes else "-"
    condition = Message("drained") if board.drained else Message("up")
    state_text = Message("down: {problem}", problem=state.problem) if state.problem else condition
    return (board.name, board.url, machine or "-", shown(memory), state.version or "-", shown(state_text))


def _rate(rate: float | None) -> str:
    from trilithon.units import format_number

    return "-" if rate is None else format_number(rate)

"""`trilithon bench MODEL --on rock1,rock2`: a campaign on each board, one table here."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from trilithon.cli.output import say, shown
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message

if TYPE_CHECKING:
    from trilithon.settings import Configuration

__all__ = ["bench_on_boards", "complete_boards", "words_for_boards"]

_HERE = frozenset({"boards", "output", "progress", "report_folder", "yes"})
"""Parameters that are for this machine."""


def complete_boards(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of a list with commas, the last one."""
    from trilithon.cli.fleet.commands import complete_board

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete_board(context, parameter, last)]


def bench_on_boards(context: click.Context, configuration: "Configuration") -> None:
    """Raises UserError for unknown boards, and TrilithonError where a board has no results."""
    from trilithon.cli.bench.outcome import show_campaigns
    from trilithon.fleet.benches import bench_on
    from trilithon.fleet.boards import named_boards
    from trilithon.results.store.database import Store

    if context.params["report_folder"] is not None:
        raise UserError("--report and --on: make the report afterwards, with trilithon results report")
    if Path(context.params["questions"] or "").is_file():
        raise UserError("--questions and --on: the boards do not have that file; use --questions standard")
    names = [name.strip() for name in context.params["boards"].split(",") if name.strip()]
    if not names:
        raise UserError("--on: name boards, separated by commas; see: trilithon fleet list")
    known = named_boards(configuration, names)
    lock, texts = threading.Lock(), dict.fromkeys(names, "")

    def watch(board: str, text: str) -> None:
        with lock:
            if texts[board] != text:
                texts[board] = text
                say(f"{board}: {text}", err=True)

    benches = bench_on(known, words_for_boards(context), watch)
    kept = []
    with Store.open(configuration.results_database) as store:
        for bench in benches:
            if bench.campaign is not None:
                number, is_new = store.add_once(bench.campaign)
                text = Message("{board}: saved as campaign {number}", board=bench.board, number=str(number))
                again = Message("{board}: already here as campaign {number}", board=bench.board, number=str(number))
                say(shown(text if is_new else again), err=True)
                kept.append((bench.board, store.campaign(number)))
            else:
                say(f"{bench.board}: {shown(bench.problem)}", err=True)
    if kept:
        show_campaigns([campaign for _, campaign in kept], context.params["output"], [board for board, _ in kept])
    if failed := [bench.board for bench in benches if bench.campaign is None]:
        raise TrilithonError("no results from: {boards}; the reasons are above", boards=", ".join(failed))


def words_for_boards(context: click.Context) -> list[str]:
    """The words of this command line that each board gets too."""
    words: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in _HERE or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            arguments += map(str, value)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words += [parameter.opts[0]]
        else:
            for part in value if parameter.multiple else (value,):
                words += [parameter.opts[-1], str(part)]
    return [*words, *(["--", *arguments] if arguments else [])]

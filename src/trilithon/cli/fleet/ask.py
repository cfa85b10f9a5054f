"""`trilithon fleet ask FILE.jsonl`: a batch of requests over all boards."""

import json
from pathlib import Path

import click

from trilithon.cli.output import say, shown
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.

__all__ = ["ask_command"]


@click.command("ask")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where answers go. [default: FILE.answers.jsonl]")
@click.option("--model", default="", help="The model of lines that name none.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def ask_command(file: Path, output: Path | None, model: str, as_json: bool) -> None:
    """Answer each line of FILE on the boards that have its model, many at once.

    A line is the JSON body of a chat completion, or has it in "body", as in OpenAI's batches. Answers are appended as
    they come; the same command again goes on with what has no answer."""
    from trilithon.cli.signals import stoppable
    from trilithon.fleet.batch import answer_lines, read_lines
    from trilithon.fleet.boards import board_key, named_boards
    from trilithon.fleet.state import states_of
    from trilithon.settings import load_configuration

    lines = read_lines(file, model)
    known = named_boards(load_configuration())
    answers = output or file.with_name(f"{file.stem}.answers.jsonl")
    if answers.exists() and answers.samefile(file):
        raise UserError("{path} is the file of the questions; name another one with -o", path=answers)
    boards = []
    for board, state in zip(known, states_of(known), strict=True):
        if state.problem:
            say(shown(Message("board {name} {problem}", name=board.name, problem=state.problem)), err=True)
        else:
            boards.append((board, board_key(board), state))

    def tell(done: int, total: int) -> None:
        say(f"{done}/{total}", err=True)

    with stoppable(Message("stopped; what was answered is kept in {path}. Go on with the same command", path=answers)):
        outcome = answer_lines(lines, answers, boards, tell)
    counts = {"answered": outcome.answered, "refused": outcome.refused, "failed": outcome.failed}
    if as_json:
        say(json.dumps(counts | {"output": str(answers)}))
    else:
        say(answers)
    if outcome.refused or outcome.failed:
        text = Message(
            "{count} line has no answer; the reasons are in {path}",
            plural="{count} lines have no answer; the reasons are in {path}",
            count=outcome.refused + outcome.failed,
            path=answers,
        )
        raise TrilithonError(text)

"""`trilithon doctor --restore`: clocks put back as they were, when whoever pinned them could not."""

import functools
from typing import Any

import click
from click.core import ParameterSource

from trilithon.cli.output import say, shown
from trilithon.errors import TrilithonError, UserError
from trilithon.language import Message

__all__ = ["restore_clocks", "with_restore"]


def with_restore(command: click.Command) -> click.Command:
    """The command with the option `--restore`, beside which it takes no other."""
    inner = command.callback
    assert inner is not None

    @functools.wraps(inner)
    def callback(*, restore: bool, **words: Any) -> Any:
        if not restore:
            return inner(**words)
        _refuse_others()
        return restore_clocks()

    command.callback = callback
    command.params.append(
        click.Option(["--restore"], is_flag=True, help="Restore clocks that an interrupted measurement left pinned.")
    )
    return command


def restore_clocks() -> None:
    """Raises TrilithonError where something is still to be put back."""
    from trilithon.board.sysfs import THIS_MACHINE
    from trilithon.board.tuning import record as tuning_record
    from trilithon.settings import load_configuration

    folder = load_configuration().data
    if tuning_record.load(folder) is None:
        say(shown(Message("nothing to restore: no clock is pinned")), wrap=True)
        return
    with tuning_record.lock(folder):
        restored = tuning_record.restore(folder, THIS_MACHINE)
    for line in restored.lines:
        say(shown(line), wrap=True)
    if not restored.done:
        command = tuning_record.restore_command(folder)
        raise TrilithonError(Message("not everything was restored; run: {command}", command=command))


def _refuse_others() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name != "restore":
            raise UserError(
                Message("--restore restores clocks and does nothing else; leave {option} out", option=parameter.opts[0])
            )

"""The help of commands and options in the user's language."""

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

from trilithon.cli.output import shown
from trilithon.language import language_of_environment
from trilithon.terminal import ascii_signs, shows_signs

__all__ = ["HelpContext", "in_users_language", "readable", "texts_of"]

_Command = TypeVar("_Command", bound=click.Command)


class _Formatter(click.HelpFormatter):
    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """On a narrow terminal the column of the options is narrower, too: a long word has room beside it."""
        super().write_dl(rows, min(col_max, self.width * 3 // 10), col_spacing)

    def getvalue(self) -> str:
        text = super().getvalue()
        return text if shows_signs() else ascii_signs(text)


class HelpContext(click.Context):
    formatter_class = _Formatter


def readable(command: _Command) -> _Command:
    """The command, with help that breaks no word on a narrow terminal; its subcommands too."""
    command.context_class = HelpContext
    if isinstance(command, click.Group):
        for child in command.commands.values():
            readable(child)
    return command


def in_users_language(command: _Command) -> _Command:
    """The command itself in English; else a copy with translated help, its options and subcommands too."""
    if language_of_environment() == "en":
        return command
    localised = copy.copy(command)
    localised._help_option = None  # click keeps it there, with the text of the language it was made in
    paragraphs = list(map(shown, _paragraphs(command)))
    localised.help = "\n\n".join(paragraphs)
    localised.short_help = f"{paragraphs[0].partition('. ')[0].rstrip('.')}."  # whole: click would cut a long one
    localised.options_metavar = shown(command.options_metavar or "")
    localised.params = list(map(_localised, command.params))
    if isinstance(localised, click.Group):
        localised.subcommand_metavar = shown(localised.subcommand_metavar)
        localised.commands = {name: in_users_language(child) for name, child in localised.commands.items()}
    return localised


def texts_of(command: click.Command) -> Iterator[str]:
    """All that `in_users_language` translates, but for the words of click."""
    yield from _paragraphs(command)
    yield from (option.help for option in command.params if isinstance(option, click.Option) and option.help)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from texts_of(child)


def _paragraphs(command: click.Command) -> list[str]:
    """Each without its line breaks: a docstring may be wrapped anew and keep its translation."""
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def _localised(parameter: click.Parameter) -> click.Parameter:
    localised = copy.copy(parameter)
    if isinstance(localised, click.Option):
        localised.help = shown(localised.help or "")
        if not localised.metavar and not isinstance(localised.type, click.Choice):
            localised.metavar = shown(localised.type.name.upper())
    return localised

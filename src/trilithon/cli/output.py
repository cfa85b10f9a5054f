"""The one way to a user's terminal: names and texts of files, servers and models are strangers' texts."""

import os
import sys
from typing import TextIO

import click

from trilithon.language import Message, language_of_environment, translated
from trilithon.terminal import ascii_signs, plain, shows_signs

__all__ = ["agreed", "fit_for", "say", "shown"]

_COMMAND_MARKS = ("$ ", "→ ", "-> ", "? ")


def say(text: object = "", *, err: bool = False, nl: bool = True, raw: bool = False, wrap: bool | None = None) -> None:
    """Print on stdout or stderr: on a terminal without control characters, elsewhere exactly; a Message in the user's
    language. `raw`: the text has the program's own control characters, and strangers' texts in it are plain. `wrap`:
    lines too long for a terminal break between words; by default those on stderr. What a user copies or a program reads
    is not wrapped."""
    stream = sys.stderr if err else sys.stdout
    if isinstance(text, Message):
        text = shown(text)
    if raw and stream is not None and not shows_signs(stream):
        text = ascii_signs(str(text))
    elif not raw and stream is not None:
        text = fit_for(stream, str(text))
        if (err if wrap is None else wrap) and (width := _columns(stream)):
            text = "\n".join(_wrapped(line, width) for line in text.split("\n"))
    click.echo(text, err=err, nl=nl, color=True)  # with color=None, click would drop escape sequences before a pipe


def _columns(stream: TextIO) -> int:
    """Of a terminal; 0 where nothing is known, and for what is none."""
    if not stream.isatty():
        return 0
    chosen = os.environ.get("COLUMNS", "")
    return int(chosen) if chosen.isdecimal() else os.get_terminal_size(stream.fileno()).columns


def _wrapped(line: str, width: int) -> str:
    """What follows the first line of a table's row is indented further, so that it is seen to belong to the row. A
    command to copy, which has an arrow or a dollar sign before it, stays in one line."""
    if len(line) <= width or line.lstrip().startswith(_COMMAND_MARKS):
        return line
    import textwrap

    is_row = "  " in line.strip()
    indent = " " * (len(line) - len(line.lstrip()) + 4 * is_row)
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
    return "\n".join(wrapper.wrap(line))


def fit_for(stream: TextIO, text: str) -> str:
    """The text as `say` prints it there."""
    if stream.isatty():
        text = plain(text)
    return text if shows_signs(stream) else ascii_signs(text)


def agreed(question: str, *, default: bool = True) -> bool:
    """The user's answer on stdin to a question on stderr, in their language. Raises Abort at its end and for Ctrl-C."""
    text, width = plain(shown(question)), _columns(sys.stderr) - len(" [Y/n]: ")
    if width > 0:
        text = "\n".join(_wrapped(line, width) for line in text.split("\n"))
    return click.confirm(text, default=default, err=True)


def shown(text: str) -> str:
    """In the user's language."""
    return translated(text, language_of_environment())

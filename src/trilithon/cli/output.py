"""The one way to a user's terminal: names and texts of files, servers and models are strangers' texts."""

import sys
from typing import TextIO

import click

from trilithon.language import language_of_environment, translated
from trilithon.terminal import ascii_signs, plain, shows_signs

__all__ = ["fit_for", "say", "shown"]


def say(text: object = "", *, err: bool = False, nl: bool = True, raw: bool = False) -> None:
    """Print on stdout or stderr: on a terminal without control characters, elsewhere exactly. `raw`: the text has the
    program's own control characters, and strangers' texts in it are plain."""
    stream = sys.stderr if err else sys.stdout
    if not raw and stream is not None:
        text = fit_for(stream, str(text))
    click.echo(text, err=err, nl=nl, color=True)  # with color=None, click would drop escape sequences before a pipe


def fit_for(stream: TextIO, text: str) -> str:
    """The text as `say` prints it there."""
    if stream.isatty():
        text = plain(text)
    return text if shows_signs(stream) else ascii_signs(text)


def shown(text: str) -> str:
    """In the user's language."""
    return translated(text, language_of_environment())

"""The one way to a user's terminal: names and texts of files, servers and models are strangers' texts."""

import sys

import click

from trilithon.language import language_of_environment, translated
from trilithon.terminal import ascii_signs, plain, shows_signs

__all__ = ["say", "shown"]


def say(text: object = "", *, err: bool = False, nl: bool = True, raw: bool = False) -> None:
    """Print on stdout or stderr: on a terminal without control characters, elsewhere exactly. `raw`: the text has the
    program's own control characters, and strangers' texts in it are plain."""
    stream = sys.stderr if err else sys.stdout
    if not raw and stream is not None and stream.isatty():
        text = plain(str(text))
    if not raw and stream is not None and not shows_signs(stream):
        text = ascii_signs(str(text))
    click.echo(text, err=err, nl=nl, color=True)  # with color=None, click would drop escape sequences before a pipe


def shown(text: str) -> str:
    """In the user's language."""
    return translated(text, language_of_environment())

"""`trilithon completion SHELL`: the script that makes a shell complete trilithon's commands and options."""

import os
from pathlib import Path

import click

from trilithon.cli.output import say
from trilithon.cli.words import WordChoice
from trilithon.errors import UserError
from trilithon.language import Message

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=WordChoice(_SHELLS), required=False)
@click.option("--install", is_flag=True, help="Write it where SHELL reads it by itself.")
def completion(shell: str | None, install: bool) -> None:
    """Print the completion script of SHELL. [default: the login shell]"""
    from click.shell_completion import get_completion_class

    from trilithon.cli.main import main

    name = shell or Path(os.environ.get("SHELL") or "bash").name
    kind = get_completion_class(name)
    if kind is None:
        raise UserError("no completion for {name}; choose from {names}", name=name, names=", ".join(_SHELLS))
    script = kind(main, {}, "trilithon", "_TRILITHON_COMPLETE").source()
    if install:
        _install(name, script)
    else:
        say(script)


def _install(shell: str, script: str) -> None:
    """Raises UserError where the file cannot be written."""
    path = _place(shell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{script}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            "{path}: {reason}; print the script instead: trilithon completion {shell}",
            path=path,
            reason=error.strerror,
            shell=shell,
        ) from error
    message = Message("{shell} completes trilithon's commands from its next start on: {path}", shell=shell, path=path)
    say(message, err=True)
    if shell == "zsh":
        line = f"fpath=({path.parent} $fpath)"
        say(Message("for zsh, ~/.zshrc needs this line before compinit: {line}", line=line), err=True)


def _place(shell: str) -> Path:
    """The folder that bash-completion (README, "FAQ") and fish (fish_complete_path) read for one user. zsh has none."""

    def folder(variable: str, default: str) -> Path:
        return Path(os.environ.get(variable) or Path.home() / default)

    match shell:
        case "fish":
            return folder("XDG_CONFIG_HOME", ".config") / "fish/completions/trilithon.fish"
        case "zsh":
            return folder("XDG_DATA_HOME", ".local/share") / "zsh/site-functions/_trilithon"
        case _:
            return folder("XDG_DATA_HOME", ".local/share") / "bash-completion/completions/trilithon"

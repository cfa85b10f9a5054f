"""`trilithon completion SHELL`: the script that makes a shell complete trilithon's commands and options."""

import click

from trilithon.cli.output import say

__all__ = ["completion"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL. For bash: trilithon completion bash >> ~/.bashrc"""
    from click.shell_completion import get_completion_class

    from trilithon.cli.main import main

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    say(kind(main, {}, "trilithon", "_TRILITHON_COMPLETE").source())

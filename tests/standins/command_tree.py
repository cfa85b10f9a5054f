"""The commands of the command line, for tests that try each."""

import click

from trilithon.cli.main import main

__all__ = ["command_at", "command_paths"]


def command_paths(command: click.Command = main, *path: str) -> list[tuple[str, ...]]:
    """Every command and group, by its words."""
    paths = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            paths += command_paths(child, *path, name)
    return paths


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    return command

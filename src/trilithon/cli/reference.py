"""The command line's reference page, from the commands' own help: `python -m trilithon.cli.reference`."""

from collections.abc import Iterator

import click

from trilithon.cli.main import main

__all__ = ["reference"]

_HEAD = "# Commands\n\nMade by `make docs` from the commands' own help; do not edit.\n"


def reference() -> str:
    """The whole page, in Markdown."""
    return _HEAD + "".join(
        f"\n## {' '.join(path)}\n\n```text\n{_help(command, path)}\n```\n" for path, command in _commands(main, ())
    )


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    path = (*path, command.name if path and command.name else "trilithon")
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _commands(found, path)


def _help(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


if __name__ == "__main__":
    click.echo(reference(), nl=False)

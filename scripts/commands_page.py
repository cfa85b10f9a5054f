"""The command line's reference page, from the commands' own help: `python scripts/commands_page.py`."""

from collections.abc import Iterator

import click

from trilithon.cli.main import main
from trilithon.language import use_language

_HEAD = "# Commands\n\nMade by `make docs` from the commands' own help; do not edit.\n"


def reference() -> str:
    """The whole page, in Markdown."""
    return _HEAD + "".join(
        f"\n## {context.command_path}\n\n```text\n{_help(context)}\n```\n" for context in _contexts(main, "trilithon")
    )


def _contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """The command as it is called, and then its subcommands."""
    context = click.Context(
        command, parent, name, terminal_width=100, max_content_width=100, **command.context_settings
    )
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            subcommand = command.get_command(context, child)
            if subcommand is not None:
                yield from _contexts(subcommand, child, context)


def _help(context: click.Context) -> str:
    return "\n".join(line.rstrip() for line in context.get_help().splitlines())


if __name__ == "__main__":
    use_language("en")
    click.echo(reference(), nl=False)

"""The command line's door: commands load when they are called, errors become one line and an exit code."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from trilithon.cli.help_texts import HelpContext, in_users_language, readable
from trilithon.cli.output import say, shown
from trilithon.cli.words import WordChoice
from trilithon.errors import TrilithonError
from trilithon.language import LANGUAGES, Message, use_language

__all__ = ["entry", "main"]

# command → module:attribute below trilithon.cli, and the short help. A module is imported only when its command runs,
# so that `--help` stays instant.
_COMMANDS = {
    "run": ("chat.run:run", "Chat with a model, or ask one question."),
    "setup": ("setup.setup:setup", "Set this machine up: runtime, model, build and service."),
    "serve": ("serve.serve:serve", "Serve models over Ollama's, OpenAI's and Anthropic's APIs."),
    "service": ("service.service:service", "Run the server as a service of systemd."),
    "fleet": ("fleet.commands:fleet", "Put several boards behind one address, and compare them."),
    "ps": ("serve.ps:ps", "List the models that the server has loaded."),
    "stop": ("serve.ps:stop", "Unload a model from the server."),
    "bench": ("bench.bench:bench", "Measure a model on every unit this machine has."),
    "tune": ("tune.tune:tune", "Find the fastest settings for a model whose answers stay right."),
    "estimate": ("estimate.estimate:estimate", "Estimate a model's speed and memory before it is downloaded."),
    "recommend": ("estimate.recommend:recommend", "Recommend models that fit a board and are fast enough."),
    "atlas": ("estimate.atlas:atlas", "List published measurements of models on boards."),
    "results": ("bench.results:results", "List, show, compare, export and import measurements."),
    "plan": ("bench.plan:plan", "List, show, set and remove the placements that models run on."),
    "pull": ("models.pull:pull", "Fetch a model from Hugging Face, an Ollama registry or an address."),
    "list": ("models.commands:list_models", "List the models that are here."),
    "show": ("models.commands:show", "Show a model's details, and what can run it here."),
    "rm": ("models.commands:remove", "Remove models."),
    "cp": ("models.commands:copy", "Give a model a second name."),
    "verify": ("models.commands:verify", "Check the files of models against their SHA-256."),
    "prune": ("models.commands:prune", "Remove unused files and stopped downloads."),
    "adopt": ("models.adopt:adopt", "List models of other programs, and add folders to search."),
    "create": ("models.create:create", "Create a model from a Modelfile."),
    "convert": ("models.convert:convert", "Turn a model into a file for an NPU, or into a GGUF."),
    "quantize": ("models.convert:quantize", "Quantise a model."),
    "models": ("models.synthesize:models", "Create models with random weights, to measure speed."),
    "engines": ("engines.commands:engines", "List, add, compile, check and remove engine builds."),
    "config": ("config:config", "Show and change settings."),
    "backup": ("backup.backup:backup", "Write everything but models into one file."),
    "restore": ("backup.backup:restore", "Put back what a backup holds."),
    "key": ("serve.key:key", "Add, list and revoke API keys."),
    "doctor": ("doctor.rows:doctor", "Describe this machine, and what would make it faster."),
    "board-report": (
        "doctor.board_report:board_report",
        "Write an archive that describes this board, for a bug report.",
    ),
    "completion": ("completion:completion", "Print a shell completion script."),
}


class _ReaderGone(Exception):
    """The reader of our stdout went away, as in `trilithon … | head`. click and rich would call that exit code 1."""


@contextlib.contextmanager
def _noticing_readers() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGone from error
    except SystemExit as error:  # rich's way
        if isinstance(error.__context__, BrokenPipeError):
            raise _ReaderGone from error
        raise


class _Commands(click.Group):
    context_class = HelpContext

    def make_context(self, *words: Any, **more: Any) -> click.Context:
        with _noticing_readers():
            return super().make_context(*words, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _noticing_readers():
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click looks among the commands that are loaded
            raise click.NoSuchCommand(error.command_name, possibilities=_COMMANDS, ctx=ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return in_users_language(loaded(cmd_name)) if cmd_name in _COMMANDS else None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:  # click made it before it met --lang
            option.help = shown("Show this message and exit.")
        return option

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super(_Commands, in_users_language(self)).format_usage(ctx, formatter)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super(_Commands, in_users_language(self)).format_help(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(shown(Message("Commands"))):
            formatter.write_dl([(name, shown(short_help)) for name, (_, short_help) in _COMMANDS.items()])


def loaded(name: str) -> click.Command:
    """A command of `_COMMANDS`, in English."""
    module, _, attribute = _COMMANDS[name][0].partition(":")
    command: click.Command = getattr(importlib.import_module(f"trilithon.cli.{module}"), attribute)
    return readable(command)


def _set_language(ctx: click.Context, _: click.Parameter, language: str | None) -> None:
    if language and not ctx.resilient_parsing:
        use_language(language)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from trilithon import __version__

        say(f"trilithon {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--lang",
    type=WordChoice(LANGUAGES),
    is_eager=True,
    expose_value=False,
    callback=_set_language,
    help="The language of the output. [default: that of the locale]",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
def main() -> None:
    """Run language models on every unit of a board, and measure which is fastest with correct answers.

    `trilithon bench` measures the demo model on this machine, `trilithon doctor` describes the machine. Results go to
    stdout, progress to stderr. Exit codes: 0 success, 1 failure, 2 bad input, 130 interrupted."""


def entry() -> None:
    """The program `trilithon`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. The one place where errors become text."""
    use_language(None)  # before --help, which click may meet first
    try:
        result: Any = main.main(args=arguments, prog_name="trilithon", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        text = io.StringIO()
        error.show(file=text)
        say(text.getvalue(), err=True, nl=False)
        return 2
    except (click.Abort, KeyboardInterrupt):
        say(shown(Message("stopped")), err=True)
        return 130
    except TrilithonError as error:
        say(shown(Message("error: {error}", error=error.args[0] if error.args else "")), err=True)
        return error.exit_code
    except UnicodeEncodeError as error:
        piece = error.object[error.start : error.end]
        message = Message("a name or text has {piece!r}, which is not UTF-8; write other words", piece=piece)
        say(shown(Message("error: {error}", error=message)), err=True)
        return 2
    except _ReaderGone:
        _drop_stdout()
        return 0
    except OSError as error:  # a full disk behind our stdout, a file that vanished
        _drop_stdout()
        reason = error.strerror or str(error)
        named = Message("{path}: {reason}", path=error.filename, reason=reason) if error.filename else reason
        say(shown(Message("error: {error}", error=named)), err=True)
        return 2


def _drop_stdout() -> None:
    """What still waits in its buffer would fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""`trilithon run`: a chat, or one answer, from the server that runs or from one of its own."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.models.absent import YES, or_pulled, pulled_here
from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.words import complete_placement
from trilithon.errors import Interrupted, ModelError, UserError

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from types import FrameType

    from trilithon.cli.chat.conversation import TerminalChat
    from trilithon.cli.serve.server_client import Server
    from trilithon.settings import Configuration

__all__ = ["run"]

_FILE_SUFFIXES = (".gguf", ".rkllm")


@click.command("run")
@click.argument("model", shell_complete=complete_model_or_file)
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="The system prompt.")
@click.option("--think/--nothink", default=None, help="Whether the model reasons first. [default: the model's own]")
@click.option("--format", "form", default="", metavar="json", help="Answer in JSON, or by a JSON schema.")
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A model parameter, such as temperature=0.2.",
)
@click.option("--context", type=click.IntRange(256), help="Context length in tokens, for prompt and answer together.")
@click.option(
    "--keepalive", metavar="TIME", help="How long the server keeps the model loaded afterwards: 5m, 0; -1 keeps it."
)
@click.option(
    "--placement",
    default="",
    metavar="P",
    shell_complete=complete_placement,
    help="Use this placement, in a separate server: ENGINE[@BUILD]/UNIT.",
)
@click.option("--verbose", is_flag=True, help="Show the timings of each answer.")
@YES
def run(model: str, prompt: tuple[str, ...], **words: Any) -> None:
    """Chat with MODEL (a name as in trilithon list, or a file), or ask it PROMPT.

    Piped input is appended to PROMPT. The server at TRILITHON_HOST answers (default 127.0.0.1:11435); if none runs
    there, one is started for the duration of this command. A model that is not here is pulled, once you agree. In a
    chat, /? lists the commands."""
    from trilithon.cli.chat.files import history_path
    from trilithon.cli.chat.screen import ChatScreen
    from trilithon.cli.chat.session import Session
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    question = _question(prompt)
    talk = _conversation(model, words)
    with _ended_by_signals(), _server(talk, words, configuration) as (server, talk, pull):
        screen = ChatScreen(history_path(configuration))
        session = Session(server, screen, configuration, _keep_alive(words["keepalive"]))

        def speak() -> None:
            if question is None:
                session.converse(talk)
            else:
                session.answer(talk, question)

        or_pulled(talk.model, speak, pull, yes=words["yes"])


def _question(prompt: Sequence[str]) -> str | None:
    """From the words of the command line and from a pipe; None for a chat. Raises UserError where there is neither."""
    from trilithon.cli.chat.screen import waiting

    words = " ".join(prompt).strip()
    if sys.stdin is None or not sys.stdin.isatty():
        with waiting("reading standard input"):
            piped = _piped().strip()
        if not words and not piped:
            raise UserError("no question; write it after the model, or pipe it in")
        return "\n\n".join(filter(None, (words, piped)))
    if not words and not sys.stdout.isatty():
        raise UserError("a chat needs a terminal; write the question after the model")
    return words or None


def _piped() -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError("standard input is not UTF-8 text; convert it with iconv") from error


def _conversation(model: str, words: Mapping[str, Any]) -> "TerminalChat":
    from trilithon.cli.chat.conversation import TerminalChat
    from trilithon.models.store.parameters import read_parameter

    parameters: dict[str, Any] = {}
    for word in words["parameters"]:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError("--parameter {word}: write NAME=VALUE, for example temperature=0.2", word=word)
        parameter = read_parameter(name.strip(), value)
        parameters[name.strip()] = (
            [*parameters.get(name.strip(), []), *parameter] if isinstance(parameter, list) else parameter
        )
    if words["context"]:
        parameters["num_ctx"] = words["context"]
    return TerminalChat(
        model=model,
        system=words["system"],
        parameters=parameters,
        think=words["think"],
        format=_form(words["form"]),
        verbose=words["verbose"],
    )


def _form(text: str) -> str | dict[str, Any]:
    if text in ("", "json"):
        return text
    try:
        schema = json.loads(text)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise UserError(
            '--format {text}: write json, or a JSON schema such as \'{{"type": "object"}}\'', text=text[:60]
        )
    return schema


def _keep_alive(text: str | None) -> str | float | None:
    """As the API takes it: a number is seconds. Raises UserError for what is no time."""
    from trilithon.cli.serve.settings import keep_alive_seconds

    if text is None:
        return None
    seconds = keep_alive_seconds(text, name="--keepalive")
    return -1 if seconds == float("inf") else seconds


@contextlib.contextmanager
def _server(
    talk: "TerminalChat", words: Mapping[str, Any], configuration: "Configuration"
) -> "Iterator[tuple[Server, TerminalChat, Callable[[], None]]]":
    """The one that runs, unless the user wants what only a server of its own can do; with its name for the model, and
    what pulls the model for it."""
    from dataclasses import replace

    from trilithon.cli.serve.server_client import running_server

    file = _file(talk.model)
    if file is None and not words["placement"]:
        running = running_server()
        if running is not None:
            with running:
                yield running, talk, _pulled_by(talk.model, running)
            return
    with _own_server(file, words, configuration) as (server, name):
        yield server, replace(talk, model=name or talk.model), pulled_here(talk.model, configuration)


def _pulled_by(model: str, server: "Server") -> Callable[[], None]:
    """What makes a running server pull it: its store may be another user's or another machine's."""

    def pull() -> None:
        from trilithon.cli.models.pull_progress import PullProgress
        from trilithon.models.fetch.pull import PullStep
        from trilithon.models.fetch.transfer_rate import TransferProgress

        with PullProgress(as_json=False) as progress:
            for line in server.pull(model):
                status, done, total = str(line.get("status", "")), line.get("completed"), line.get("total")
                if isinstance(done, int):
                    amount = TransferProgress(done, total if isinstance(total, int) else None)
                    progress(PullStep("fetching", model, progress=amount))
                elif status:
                    progress(PullStep("chosen", status))

    return pull


@contextlib.contextmanager
def _own_server(
    file: Path | None, words: Mapping[str, Any], configuration: "Configuration"
) -> "Iterator[tuple[Server, str]]":
    """In this process, on a socket that is ours alone; with the name that the file got, empty without one."""
    import math

    from trilithon.board.snapshot import read_board
    from trilithon.cli.serve.listening import listen_unix
    from trilithon.cli.serve.process import Listening, ServeSettings, beside, opened_service
    from trilithon.cli.serve.server_client import Address, Server
    from trilithon.serve.access.security import SecurityOptions
    from trilithon.serve.app import ServeOptions

    wishes = ServeSettings(
        paths=(file,) if file else (),
        placement=words["placement"],
        context=words["context"] or 4096,
        keep_alive_seconds=math.inf,
    )
    board = read_board()
    with _without_log(), opened_service(wishes, configuration, board) as (service, folder):
        name = service.shelf.models()[0].name if file else ""
        place = folder / "serve"
        options = ServeOptions(security=SecurityOptions(keys_required=False), drain_seconds=0)
        with (
            contextlib.closing(listen_unix(place)) as listening,
            beside(service, Listening(sockets=[listening], options=options), board),
            Server(Address("http://localhost", place)) as server,
        ):
            yield server, name


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """What goes wrong in a server of one's own is told as its answer."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _file(model: str) -> Path | None:
    """A path, where it looks like one. Raises ModelError for one that leads nowhere."""
    looks_so = model.lower().endswith(_FILE_SUFFIXES) or model.startswith(("/", "./", "../", "~"))
    path = Path(model).expanduser() if looks_so else None
    if path is not None and not path.is_file():
        raise ModelError("{path} is not a file; see trilithon list for the models that are here", path=path)
    return path


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it, with the server of its own; Ctrl-C has another meaning in a chat."""

    def end(number: int, _: "FrameType | None") -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    ending = [
        signal_number
        for signal_number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signal_number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, end) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

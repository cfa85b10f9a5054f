"""`trilithon pull`: fetch a model from Hugging Face, an Ollama registry or a URL into the store."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import shown
from trilithon.cli.words import complete_chip
from trilithon.errors import Interrupted, UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.models.pull_progress import PullProgress
    from trilithon.models.names import Reference
    from trilithon.settings import Configuration

__all__ = ["pull", "pull_model"]


def _known_chip(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The table of chips is read only when the option is given."""
    from trilithon.board.chips import platform_of, target_names

    if value and not platform_of(value):
        fix = alternatives(value, target_names())
        message = Message("unknown chip {chip!r}; {fix}", chip=value[:40], fix=fix)
        raise click.BadParameter(shown(message), context, parameter)
    return value and value.lower()


@click.command("pull")
@click.argument("model")
@click.option(
    "--quant", help="The quantisation, such as Q4_K_M or w8a8, or a file name. [default: chosen for this board]"
)
@click.option(
    "--chip",
    callback=_known_chip,
    shell_complete=complete_chip,
    metavar="CHIP",
    help="Choose files for this chip: rk3588, rk3576, …",
)
@click.option("--limit", metavar="RATE", help="Bandwidth limit in bytes per second: 500k, 2M.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow plain http: for a URL, a registry that has no https, or one on this machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as JSON lines.")
def pull(model: str, quant: str | None, chip: str | None, limit: str | None, insecure: bool, as_json: bool) -> None:
    """Fetch MODEL: an Ollama name (qwen2.5:0.5b), hf.co/user/repo[:quant], or the URL of a file.

    Of several files the best for this board is chosen. A stopped download resumes. HF_TOKEN (or hf auth login) and
    HF_ENDPOINT are used."""
    from trilithon.models.fetch.transfer_rate import parse_rate
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    rate = parse_rate(limit, name="--limit") if limit else None
    pull_model(model, configuration, quant=quant, chip=chip, rate=rate, insecure=insecure, as_json=as_json)


def pull_model(
    model: str,
    configuration: "Configuration",
    *,
    quant: str | None = None,
    chip: str | None = None,
    rate: float | None = None,
    insecure: bool = False,
    as_json: bool = False,
    aside: bool = False,
) -> None:
    """With its progress on stderr, and its result too where `aside` is set. Raises as `pull` of models.fetch does, and
    Interrupted."""
    from trilithon.board.snapshot import read_board
    from trilithon.cli.models.estimated import estimate_line
    from trilithon.cli.models.pull_progress import PullProgress
    from trilithon.engines.placing import download_target
    from trilithon.models.fetch.download import Download
    from trilithon.models.fetch.download_list import PullOptions
    from trilithon.models.fetch.pull import pull as fetch
    from trilithon.models.names import parse_reference
    from trilithon.models.store.model_store import ModelStore

    reference = _with_choice(parse_reference(model), quant)
    options = PullOptions(
        target=download_target(reference, read_board(), configuration, chip),
        transfer=Download(limit=rate),
        insecure=insecure,
    )
    with (
        ModelStore.open(configuration) as store,
        PullProgress(as_json=as_json) as progress,
        _stoppable(model, progress),
    ):
        pulled = fetch(reference, store, options, progress)
        estimate = "" if as_json or chip else estimate_line(str(pulled.manifest.name), store, configuration)
        progress.finish(pulled, estimate, aside=aside)


def _with_choice(reference: "Reference", quant: str | None) -> "Reference":
    """The repository with the user's choice, which becomes the tag of its name. Raises ModelError."""
    from trilithon.models.names import Repository, parse_reference

    if not isinstance(reference, Repository):
        if quant is not None:
            raise UserError("--quant chooses a file of hf.co/user/repo; for other models write the full name or URL")
        return reference
    choice = reference.choice if quant is None else quant
    if choice.casefold() == "latest":
        choice = ""
    return parse_reference(str(replace(reference, choice=choice)))


def _as_interrupt(_: int, __: object) -> None:
    """Raise SIGINT, which an event loop handles cleanly; where it is ignored (background jobs), KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _stoppable(model: str, progress: "PullProgress") -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C. Raises Interrupted."""
    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _as_interrupt) for number in handled}
    try:
        yield
    except KeyboardInterrupt:
        command = f"trilithon pull {shlex.quote(model)}"
        if not progress.kept:
            why = f" ({progress.trouble})" if progress.trouble else ""
            raise Interrupted(f"stopped before any data came{why}. Try again with: {command}") from None
        raise Interrupted(f"stopped; the received data is kept ({progress.kept}). Resume with: {command}") from None
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)

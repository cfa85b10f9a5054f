"""`trilithon pull`: a model from Hugging Face, an Ollama registry or an address into the store."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from trilithon.errors import Interrupted, UserError

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.models.pull_progress import PullProgress
    from trilithon.models.names import Reference

__all__ = ["pull"]


class _ChipType(click.ParamType[str]):
    """A chip that files are converted for; the table is read only when the option is given or completed."""

    name = "chip"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from trilithon.board.chips import platform_of, target_names

        if not platform_of(value):
            self.fail(f"{value} is not a known chip; choose from {', '.join(target_names())}", param, ctx)
        return value.lower()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from trilithon.board.chips import target_names

        return [CompletionItem(name) for name in target_names() if name.startswith(incomplete.lower())]


@click.command("pull")
@click.argument("model")
@click.option(
    "--quant", help="The quantisation, such as Q4_K_M or w8a8, or a file name. [default: chosen for this board]"
)
@click.option("--chip", metavar="CHIP", type=_ChipType(), help="Choose files for this chip: rk3588, rk3576, …")
@click.option("--limit", metavar="RATE", help="Bandwidth limit in bytes per second: 500k, 2M.")
@click.option(
    "--insecure", is_flag=True, help="Allow plain http for an address; with a registry on this machine use it."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as JSON lines.")
def pull(model: str, quant: str | None, chip: str | None, limit: str | None, insecure: bool, as_json: bool) -> None:
    """Fetch MODEL: a name as Ollama's (qwen2.5:0.5b), hf.co/user/repo[:quant], or the address of a file.

    Of many files the one that suits this board is taken, and said why. What was stopped goes on where it stopped.
    HF_TOKEN (or hf auth login) and HF_ENDPOINT are obeyed.
    """
    from trilithon.board.snapshot import read_board
    from trilithon.cli.models.pull_progress import PullProgress
    from trilithon.engines.placing import download_target
    from trilithon.models.fetch.download import Download
    from trilithon.models.fetch.download_list import PullOptions
    from trilithon.models.fetch.pull import pull as fetch
    from trilithon.models.fetch.transfer_rate import parse_rate
    from trilithon.models.names import parse_reference
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    rate = parse_rate(limit, name="--limit") if limit else None
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
        progress.finish(fetch(reference, store, options, progress))


def _with_choice(reference: "Reference", quant: str | None) -> "Reference":
    """The repository with the user's choice, which becomes part of its name here. Raises ModelError for an odd one."""
    from trilithon.models.names import Repository, parse_reference

    if not isinstance(reference, Repository):
        if quant is not None:
            raise UserError(
                "--quant chooses among the files of hf.co/user/repo; elsewhere write the full name or address"
            )
        return reference
    choice = reference.choice if quant is None else quant
    if choice.casefold() == "latest":
        choice = ""
    return parse_reference(str(replace(reference, choice=choice)))


def _as_interrupt(_: int, __: object) -> None:
    """By way of SIGINT, which an event loop turns into an orderly end; a shell's background jobs ignore that one."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _stoppable(model: str, progress: "PullProgress") -> Iterator[None]:
    """SIGTERM and SIGHUP as Ctrl-C. Raises Interrupted then."""
    stopping = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, _as_interrupt) for number in stopping}
    try:
        yield
    except KeyboardInterrupt:
        kept = f" ({progress.kept})" if progress.kept else ""
        raise Interrupted(
            f"stopped; what came is kept{kept}. Go on with: trilithon pull {shlex.quote(model)}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

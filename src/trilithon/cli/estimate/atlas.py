"""`trilithon atlas`: published measurements, one a row, with their source, and this machine's own ones."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from trilithon.cli.machine import short_chip, unknown_chip
from trilithon.cli.output import say, shown
from trilithon.cli.words import complete_chip, complete_engine
from trilithon.errors import UserError
from trilithon.language import Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trilithon.estimate.rows import Measurement
    from trilithon.measure.records import Campaign

__all__ = ["atlas"]

_TITLES = (
    *(Message("model"), Message("chip"), Message("engine"), Message("unit"), Message("quantisation")),
    *(
        Message("prompt"),
        Message("prefill, tok/s"),
        Message("decode, tok/s"),
        Message("first token, ms"),
        Message("source"),
    ),
)


_CAMPAIGN = click.IntRange(min=1)


class _Atlas(click.Group):
    """Lists rows when its first word is no command: a model, an option, or nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("atlas", cls=_Atlas)
def atlas() -> None:
    """List measurements of models on boards, published ones and your own, and make rows of your campaigns.

    `trilithon atlas MODEL` is short for `trilithon atlas list MODEL`."""


@atlas.command("add")
@click.argument("campaigns", nargs=-1, required=True, type=_CAMPAIGN, metavar="CAMPAIGN…")
def add(campaigns: tuple[int, ...]) -> None:
    """Add the measurements of campaigns of this machine (numbers of `trilithon results list`) to the atlas here."""
    from trilithon.estimate.local_atlas import add_rows
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    configuration.data.mkdir(parents=True, exist_ok=True)
    count = add_rows(_local(configuration.data), _stored(campaigns))
    text = Message(
        "added {count} row to {path}",
        plural="added {count} rows to {path}",
        count=count,
        path=_local(configuration.data),
    )
    say(shown(text), wrap=True)


@atlas.command("export")
@click.argument("campaigns", nargs=-1, type=_CAMPAIGN, metavar="[CAMPAIGN…]")
def export(campaigns: tuple[int, ...]) -> None:
    """Print rows as CSV with the columns of the atlas, to send them: those of campaigns, or all that were added."""
    from trilithon.estimate.local_atlas import as_csv, local_rows, rows_of_campaign
    from trilithon.settings import load_configuration

    if campaigns:
        rows = [row for campaign in _stored(campaigns) for row in rows_of_campaign(campaign)]
    else:
        rows = list(local_rows(_local(load_configuration().data)))
    if not rows:
        raise UserError("nothing was added yet; name campaigns: trilithon atlas export NUMBER")
    say(as_csv(rows).rstrip("\n"))


@atlas.command("list")
@click.argument("model", required=False)
@click.option(
    "--chip", shell_complete=complete_chip, help="Only this chip (rk3588), or boards whose name has these words."
)
@click.option("--engine", shell_complete=complete_engine, help="Only engines whose name begins so (rkllm, llama.cpp).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(model: str | None, chip: str | None, engine: str | None, as_json: bool) -> None:
    """List measurements, of MODEL or of all: who measured what on which board, and where it was published."""
    from trilithon.estimate.local_atlas import local_rows
    from trilithon.estimate.rows import atlas as published
    from trilithon.estimate.rows import source_address
    from trilithon.settings import load_configuration

    known = (*published(), *local_rows(_local(load_configuration().data)))
    if chip is not None and not short_chip(chip):  # "rockchip", which would suit each row without a chip
        raise unknown_chip(chip, sorted({row.chip for row in known if row.chip}))
    rows = [row for row in known if _suits(row, model, chip, engine)]
    if as_json:
        rows_shown = [{**asdict(row), "address": source_address(row.source)} for row in rows]
        say(json.dumps(rows_shown, indent=2, ensure_ascii=False))
    elif rows:
        say("\n".join(_lines(rows)), wrap=True)
    else:
        say(shown(Message("no measurement suits; leave out an option")), err=True)


def _local(data: "Path") -> "Path":
    return data / "atlas.csv"


def _stored(numbers: "Sequence[int]") -> "list[Campaign]":
    """Raises UserError for a number that is not there, or of another machine's campaign."""
    from trilithon.results.store.database import Store
    from trilithon.settings import load_configuration

    database = load_configuration().results_database
    if not database.is_file():
        raise UserError("nothing was measured here yet; run: trilithon bench")
    with Store.open(database) as store:
        for campaign in store.campaigns():
            if campaign.id in numbers and campaign.imported and campaign.source == "trilithon":
                raise UserError("campaign {id} is imported; add one that was measured here", id=campaign.id)
        return [store.campaign(number) for number in numbers]


def _suits(row: "Measurement", model: str | None, chip: str | None, engine: str | None) -> bool:
    from trilithon.estimate.sizes import size_named

    if chip and not (row.chip.lower() == short_chip(chip) or chip.strip().lower() in row.board.lower()):
        return False
    if engine and not row.engine.lower().startswith(engine.lower()):
        return False
    if not model or model.lower() in row.model.lower():
        return True
    wanted, measured = size_named(model), size_named(row.model, row.params_b)
    return wanted is not None and wanted.exact and measured is not None and wanted.key == measured.key


def _lines(rows: "list[Measurement]") -> list[str]:
    from trilithon.cli.models.rows import table_or_cards
    from trilithon.estimate.rows import source_address

    cells = [tuple(shown(title) for title in _TITLES)]
    for row in rows:
        figures = (row.prompt_tokens, row.prefill_tps, row.decode_tps, row.ttft_ms)
        numbers = tuple("" if number is None else shown(Message("{value:.6g}", value=number)) for number in figures)
        cells.append((row.model, row.machine, row.engine, row.unit, row.quant, *numbers, f"{row.source} {row.date}"))
    sources = {row.source: source_address(row.source) for row in rows}
    addresses = [f"{source}: {address}" for source, address in sources.items() if address]
    return [*table_or_cards(cells, 2), "", *addresses]

"""`trilithon atlas`: published measurements, one a row, with their source."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import say, shown
from trilithon.language import Message

if TYPE_CHECKING:
    from trilithon.estimate.rows import Measurement

__all__ = ["atlas"]

_TITLES = (
    *(Message("model"), Message("chip"), Message("engine"), Message("unit"), Message("quantisation")),
    *(Message("prompt"), Message("prefill, tok/s"), Message("decode, tok/s"), "ms", Message("source")),
)


@click.command("atlas")
@click.argument("model", required=False)
@click.option("--chip", help="Only this chip (rk3588), or boards whose name has these words.")
@click.option("--engine", help="Only engines whose name begins so (rkllm, llama.cpp).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def atlas(model: str | None, chip: str | None, engine: str | None, as_json: bool) -> None:
    """List published measurements, of MODEL or of all: who measured what on which board, and where it was published."""
    from trilithon.estimate.rows import atlas as all_rows
    from trilithon.estimate.rows import source_address

    rows = [row for row in all_rows() if _suits(row, model, chip, engine)]
    if as_json:
        rows_shown = [{**asdict(row), "address": source_address(row.source)} for row in rows]
        say(json.dumps(rows_shown, indent=2, ensure_ascii=False))
    elif rows:
        say("\n".join(_lines(rows)))
    else:
        say(shown(Message("no measurement suits; leave out an option")), err=True)


def _suits(row: "Measurement", model: str | None, chip: str | None, engine: str | None) -> bool:
    from trilithon.estimate.sizes import size_named

    if chip and not (row.chip.lower() == chip.lower() or chip.lower() in row.board.lower()):
        return False
    if engine and not row.engine.lower().startswith(engine.lower()):
        return False
    if not model or model.lower() in row.model.lower():
        return True
    wanted, measured = size_named(model), size_named(row.model, row.params_b)
    return wanted is not None and wanted.exact and measured is not None and wanted.key == measured.key


def _lines(rows: "list[Measurement]") -> list[str]:
    from trilithon.cli.models.rows import aligned
    from trilithon.estimate.rows import source_address

    cells = [tuple(shown(title) for title in _TITLES)]
    for row in rows:
        figures = (row.prompt_tokens, row.prefill_tps, row.decode_tps, row.ttft_ms)
        numbers = tuple("" if figure is None else f"{figure:g}" for figure in figures)
        cells.append((row.model, row.machine, row.engine, row.unit, row.quant, *numbers, f"{row.source} {row.date}"))
    addresses = dict.fromkeys(f"{row.source}: {source_address(row.source)}" for row in rows)
    return [*aligned(cells), "", *addresses]

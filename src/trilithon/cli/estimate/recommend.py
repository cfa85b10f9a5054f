"""`trilithon recommend`: which models to try on a board."""

import json
from typing import TYPE_CHECKING

import click

from trilithon.cli.machine import chosen_chips, figure, room_bytes, shift_here
from trilithon.cli.models.estimated import range_json
from trilithon.cli.output import say, shown
from trilithon.cli.words import WordChoice, complete_chip
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trilithon.estimate.recommend import RecommendedModel

__all__ = ["recommend"]

_TITLES = (
    *(
        Message("model"),
        Message("quality"),
        Message("decode, tok/s"),
        Message("80%"),
        Message("engine"),
        Message("memory"),
    ),
    *(Message("licence"), Message("languages"), Message("tools")),
)
_TASKS = ("chat", "rag", "code", "home")


@click.command("recommend")
@click.option("--task", type=WordChoice(_TASKS), default="chat", show_default=True, help="What the model is for.")
@click.option("--chip", "chip_name", shell_complete=complete_chip, help="A chip (rk3588); without it, this machine.")
@click.option("--memory", help="Memory of the board, as 8GB; without it, this machine's.")
@click.option(
    "--min-tokens-per-second", type=click.FloatRange(0), default=5, show_default=True, help="Leave out what is slower."
)
@click.option(
    "--context", type=click.IntRange(1, 10_000_000), default=4096, show_default=True, help="Tokens of the KV cache."
)
@click.option("--count", type=click.IntRange(1, 100), default=5, show_default=True, help="The most models to list.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recommend(
    task: str,
    chip_name: str | None,
    memory: str | None,
    min_tokens_per_second: float,
    context: int,
    count: int,
    as_json: bool,
) -> None:
    """List models that fit and are fast enough on this machine or a chip, the best published quality first."""
    from trilithon.estimate.recommend import recommended
    from trilithon.settings import load_configuration

    chips = chosen_chips(chip_name)
    if len(chips) > 1:
        raise UserError("models are recommended for one chip; name it, as --chip rk3588")
    rows = recommended(
        chips[0],
        task=task,
        room=room_bytes(memory, chip_name),
        least=min_tokens_per_second,
        context=context,
        shift=shift_here(load_configuration(), chip_name),
    )[:count]
    if as_json:
        say(json.dumps([_json(row) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        say("\n".join(_lines(rows)), wrap=True)
    else:
        text = Message("no model of the table fits and is fast enough; lower --min-tokens-per-second or --context")
        say(shown(text), err=True)


def _lines(rows: "Sequence[RecommendedModel]") -> list[str]:
    from trilithon.cli.models.rows import table_or_cards

    cells = [tuple(shown(title) for title in _TITLES)]
    for row in rows:
        candidate, seen = row.candidate, row.estimate
        low, high = seen.decode.within_80
        speeds = (figure(seen.decode.value), f"{figure(low)}–{figure(high)}", f"{seen.engine}/{seen.unit}")
        about = (
            _licence(candidate.licence),
            shown(candidate.languages),
            shown(Message("yes") if candidate.tools else Message("no")),
        )
        quality = shown(Message("no figure"))
        if candidate.quality is not None:
            measured = Message("{quality:g}% {benchmark}", quality=candidate.quality, benchmark=candidate.benchmark)
            quality = shown(measured)
        cells.append((candidate.name, quality, *speeds, shown(format_bytes(seen.memory.needed)), *about))
    fetch = Message("to fetch the first: {command}", command=f"trilithon pull {rows[0].candidate.pull}")
    return [*table_or_cards(cells, 1), "", shown(fetch)]


def _licence(text: str) -> str:
    name, remark, _ = text.partition(" (not for commercial use)")
    return shown(Message("{name} (not for commercial use)", name=name)) if remark else name


def _json(row: "RecommendedModel") -> dict[str, object]:
    candidate, seen = row.candidate, row.estimate
    return {
        "model": candidate.name,
        "pull": f"trilithon pull {candidate.pull}",
        "licence": candidate.licence,
        "languages": candidate.languages,
        "tools": candidate.tools,
        "quality": candidate.quality,
        "benchmark": candidate.benchmark,
        "sources": candidate.sources,
        "engine": seen.engine,
        "unit": seen.unit,
        "quantization": seen.quantization,
        "decode_tps": range_json(seen.decode),
        "prefill_tps": range_json(seen.prefill),
        "memory_bytes": round(seen.memory.needed),
        "basis": seen.basis,
    }

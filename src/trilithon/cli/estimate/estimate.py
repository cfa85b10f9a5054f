"""`trilithon estimate`: how fast a model will be, and whether it fits, before it is downloaded."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from trilithon.cli.machine import chosen_chips, figure, room_bytes, shift_here
from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.models.estimated import estimate_json, memory_text
from trilithon.cli.output import say, shown
from trilithon.cli.words import complete_chip, complete_engine
from trilithon.errors import UserError
from trilithon.language import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trilithon.estimate.answer import Range, SpeedEstimate, Subject
    from trilithon.models.fetch.choose import Target
    from trilithon.settings import Configuration

__all__ = ["estimate"]

_TITLES = (
    *(
        Message("chip"),
        Message("engine"),
        Message("quantisation"),
        Message("decode, tok/s"),
        Message("80%"),
        Message("95%"),
    ),
    *(Message("prefill, tok/s"), Message("80%"), Message("first token, s"), Message("memory")),
)
_NOT_MODELLED = Message(
    "Vulkan on the GPU of a board, speculation and models larger than memory are not estimated: measure them."
)


@click.command("estimate")
@click.argument("model", shell_complete=complete_model_or_file)
@click.option(
    "--chip", "chip_name", shell_complete=complete_chip, help="A chip (rk3588), or all; without it, this machine."
)
@click.option("--here", is_flag=True, help="This machine, with what was measured on it.")
@click.option(
    "--engine",
    shell_complete=complete_engine,
    help="rkllm, rk-llama.cpp, llama.cpp or ik_llama.cpp; without it, all that run the model.",
)
@click.option("--quant", help="The quantisation, as Q4_K_M or w8a8; without it, what is usual for the engine.")
@click.option(
    "--prompt",
    type=click.IntRange(1, 1_000_000),
    help="Prompt tokens, and decode after them. [default: pp512 and tg128, as bench measures]",
)
@click.option(
    "--context", type=click.IntRange(1, 10_000_000), default=4096, show_default=True, help="Tokens of the KV cache."
)
@click.option("--memory", help="Memory of the board, as 8GB: whether the model fits; without it, this machine's.")
@click.option("--min-tokens-per-second", type=click.FloatRange(0), default=0, help="Leave out what decodes slower.")
@click.option("--offline", is_flag=True, help="Ask no server about MODEL; know it by its name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(
    model: str,
    chip_name: str | None,
    here: bool,
    engine: str | None,
    quant: str | None,
    prompt: int | None,
    context: int,
    memory: str | None,
    min_tokens_per_second: float,
    offline: bool,
    as_json: bool,
) -> None:
    """Estimate the speed and the memory of MODEL (a file, a name of `trilithon list` or `trilithon pull`, or a name
    with its size such as qwen2.5-1.5b), with intervals that 80% and 95% of new models stay within.

    Of a model on a server, only the header of its file is read."""
    from trilithon.estimate.answer import PROMPT_TOKENS, estimates
    from trilithon.estimate.recommend import fits
    from trilithon.estimate.subjects.subject import subject_of
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import load_configuration

    if here and chip_name:
        raise UserError("--here and --chip name different machines; leave out one of them")
    configuration = load_configuration()
    with ModelStore.open(configuration) as store:
        subject = subject_of(model, store, None if offline else _target(model, configuration, chip_name, quant))
    rows = estimates(
        subject,
        chosen_chips(chip_name),
        engine=engine,
        quantization=quant,
        prompt=prompt,
        context=context,
        shift=shift_here(configuration, chip_name),
    )
    rows = [row for row in rows if row.decode.value >= min_tokens_per_second]
    room = room_bytes(memory, chip_name)
    if as_json:
        rows_shown = [estimate_json(row, fits(row, room)) for row in rows]
        about = {"model": subject.size.key, "sizes_from": subject.sizes_from}
        say(json.dumps({**about, "estimates": rows_shown}, indent=2, ensure_ascii=False))
    elif rows:
        say("\n".join(_lines(model, subject, rows, room, prompt or PROMPT_TOKENS, context)), wrap=True)
    else:
        text = Message("nothing decodes {least} tokens/s or more; try a smaller model", least=min_tokens_per_second)
        say(shown(text), err=True)


def _target(
    model: str, configuration: "Configuration", chip_name: str | None, quant: str | None
) -> "Callable[[], Target]":
    """The board that `pull` would choose a file for, and the quantisation that the user named."""

    def target() -> "Target":
        from trilithon.board.snapshot import read_board
        from trilithon.engines.placing import download_target
        from trilithon.models.fetch.choose import Target
        from trilithon.models.names import Repository, parse_reference

        reference = parse_reference(model)
        if chip_name is not None:
            wanted = Target(chip="unknown" if chip_name.lower() == "all" else chip_name)
        else:
            wanted = download_target(reference, read_board(), configuration)
        choice = reference.choice if isinstance(reference, Repository) else ""
        return replace(wanted, quantization=quant or choice)

    return target


def _lines(
    model: str, subject: "Subject", rows: "Sequence[SpeedEstimate]", room: int | None, prompt: int, context: int
) -> list[str]:
    from trilithon.cli.models.rows import table_or_cards
    from trilithon.estimate.recommend import fits, is_usual

    cells = [tuple(shown(title) for title in _TITLES)]
    for row in rows:
        need = memory_text(row, fits(row, room))
        first = figure(float(f"{row.first_token.value:.2g}"))
        speeds = (*_cells(row.decode, 2), *_cells(row.prefill, 1), first, need)
        cells.append((row.chip, f"{row.engine}/{row.unit}", row.quantization, *speeds))
    head = Message(
        "{model}: {billions} billion parameters, prompt of {prompt} tokens, context of {context}",
        model=model,
        billions=figure(subject.size.parameters / 1e9),
        prompt=prompt,
        context=context,
    )
    bases = dict.fromkeys(f"{row.chip} {row.engine}: {shown(row.basis)}" for row in rows)
    measured = next((row for row in rows if is_usual(row)), rows[0])
    verify = Message("to verify: {command}", command=measured.verify)
    remark = [shown(subject.sizes_from)] if subject.sizes_from else []
    return [shown(head), *remark, *table_or_cards(cells, 3), "", *bases, shown(_NOT_MODELLED), shown(verify)]


def _cells(seen: "Range", intervals: int) -> tuple[str, ...]:
    pairs = (seen.within_80, seen.within_95)[:intervals]
    return (figure(seen.value), *(f"{figure(low)}–{figure(high)}" for low, high in pairs))

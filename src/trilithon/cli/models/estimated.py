"""One line with the estimate of a model on this machine, for commands that fetch models."""

from typing import TYPE_CHECKING

from trilithon.cli.machine import chosen_chips, figure, room_bytes, shift_here
from trilithon.cli.output import shown
from trilithon.errors import TrilithonError
from trilithon.language import Message
from trilithon.units import format_bytes

if TYPE_CHECKING:
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import Configuration

__all__ = ["estimate_line"]


def estimate_line(model: str, store: "ModelStore", configuration: "Configuration") -> str:
    """Of a model that is in the store; empty where nothing is known of this machine or of the model's sizes, and for a
    model that makes no text: bench refuses it."""
    from trilithon.estimate.answer import estimates
    from trilithon.estimate.recommend import fits, is_usual
    from trilithon.estimate.subjects.subject import subject_of
    from trilithon.estimate.terms import machine_rates
    from trilithon.models.store.resolve import makes_text

    chips = chosen_chips(None)
    try:
        if not makes_text(model, store):
            return ""
        subject = subject_of(model, store)
        shift = shift_here(configuration, None)
        rows = [row for row in estimates(subject, chips, shift=shift) if subject.converted or is_usual(row)]
    except TrilithonError:  # a damaged header or database is told by the command that needs it
        return ""
    if not rows or not (machine_rates(chips[0].name) or shift):
        return ""
    row = max(rows, key=lambda row: row.decode.value)
    low, high = row.decode.within_80
    memory = shown(format_bytes(row.memory.total))
    if fits(row, room_bytes(None, None)) is False:
        memory = shown(Message("{size} (does not fit)", size=memory))
    return shown(
        Message(
            "estimated here: decode {decode} ({low} to {high}) tokens/s, memory {memory}; to measure: {command}",
            decode=figure(row.decode.value),
            low=figure(low),
            high=figure(high),
            memory=memory,
            command=row.verify,
        )
    )

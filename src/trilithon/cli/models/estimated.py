"""Estimates of models on this machine: a line for commands that fetch models, a column of the list, and JSON."""

from typing import TYPE_CHECKING, Any

from trilithon.cli.machine import figure
from trilithon.cli.output import shown
from trilithon.errors import TrilithonError
from trilithon.language import Message
from trilithon.units import format_byte_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trilithon.estimate.answer import Range, SpeedEstimate
    from trilithon.models.store.manifest import Manifest
    from trilithon.models.store.model_store import ModelStore
    from trilithon.settings import Configuration

__all__ = ["estimate_json", "estimate_line", "estimates_of", "memory_text", "range_json"]


def estimate_line(model: str, store: "ModelStore", configuration: "Configuration") -> str:
    """Of a model that is in the store; empty where nothing is known of this machine or of the model's sizes, and for a
    model that makes no text: bench refuses it."""
    from trilithon.board.snapshot import read_board
    from trilithon.estimate.here import estimate_here, this_machine
    from trilithon.estimate.subjects.subject import subject_of
    from trilithon.models.store.resolve import makes_text

    try:
        machine = this_machine(configuration, read_board()) if makes_text(model, store) else None
        row = estimate_here(subject_of(model, store), machine) if machine else None
    except TrilithonError:  # a damaged header or database is told by the command that needs it
        return ""
    if machine is None or row is None:
        return ""
    low, high = row.decode.within_80
    return shown(
        Message(
            "estimated here: decode {decode} ({low} to {high}) tokens/s, memory {memory}; to measure: {command}",
            decode=figure(row.decode.value),
            low=figure(low),
            high=figure(high),
            memory=memory_text(row, machine.fits(row)),
            command=row.verify,
        )
    )


def estimates_of(
    manifests: "Iterable[Manifest]", configuration: "Configuration"
) -> "Mapping[str, tuple[SpeedEstimate, bool | None]]":
    """By name, with whether the model fits: of those that have one. Reads no model file."""
    from trilithon.board.snapshot import read_board
    from trilithon.estimate.here import estimate_here, this_machine
    from trilithon.estimate.subjects.stored import stored_subject

    try:
        machine = this_machine(configuration, read_board())
    except TrilithonError:  # a damaged database is told by the command that needs it
        return {}
    if machine is None:
        return {}
    subjects = ((str(manifest.name), stored_subject(manifest, machine.chip.platform)) for manifest in manifests)
    rows = ((name, estimate_here(subject, machine)) for name, subject in subjects if subject is not None)
    return {name: (row, machine.fits(row)) for name, row in rows if row is not None}


def memory_text(row: "SpeedEstimate", fits: bool | None) -> str:
    """In the user's language."""
    size = shown(format_byte_range(row.memory.needed, row.memory.total))
    return shown(Message("{size} (does not fit)", size=size)) if fits is False else size


def estimate_json(row: "SpeedEstimate", fits: bool | None) -> dict[str, Any]:
    """As docs/estimate.md documents it."""
    ranges = {"prefill_tps": row.prefill, "decode_tps": row.decode, "first_token_seconds": row.first_token}
    return {
        "chip": row.chip,
        "engine": row.engine,
        "unit": row.unit,
        "quantization": row.quantization,
        **{name: range_json(seen) for name, seen in ranges.items()},
        "memory_bytes": {
            "weights": round(row.memory.weights),
            "cache": round(row.memory.cache),
            "buffers": round(row.memory.buffers),
            "copies": round(row.memory.copies),
            "total": round(row.memory.total),
        },
        "fits": fits,
        "basis": row.basis,
        "verify": row.verify,
    }


def range_json(seen: "Range") -> dict[str, Any]:
    return {
        "value": float(f"{seen.value:.4g}"),
        "within_80": [float(f"{bound:.4g}") for bound in seen.within_80],
        "within_95": [float(f"{bound:.4g}") for bound in seen.within_95],
    }

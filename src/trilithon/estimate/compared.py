"""Whether a campaign measured what was estimated before, and the likely cause where the two are far apart."""

from collections.abc import Iterator
from pathlib import Path

from trilithon.board.snapshot import Board
from trilithon.estimate.local import case_of_record, measured_shift
from trilithon.estimate.predict import PHASES, Phase, fitted, predict
from trilithon.language import Message
from trilithon.measure.records import Campaign, PlacementRecord
from trilithon.results.speeds import last_speeds
from trilithon.units import format_number

__all__ = ["far_from_estimate"]

_LEAST_PARAMETERS = 50e6  # smaller ones are not what estimates are fitted to
# Outside of the interval that 80% of models stay within, and so far that a cause is worth looking for.
_LEAST_FACTOR = 1.25
# Without dot products and repacked weights a CPU prefills two to three times slower.
_KERNEL_FACTOR = 1.8
_WORDS = {"decode": Message("decode"), "prefill": Message("prefill")}


def far_from_estimate(campaign: Campaign, database: Path, board: Board, chip: str) -> Iterator[Message]:
    """A line for each placement and phase. The estimate is that of the campaigns of other models before it. Raises
    StoreError."""
    for record in campaign.placements:
        sha256, parameters = str(record.model.get("sha256") or ""), record.model.get("parameters")
        if not isinstance(parameters, int) or parameters < _LEAST_PARAMETERS:
            continue
        speeds = last_speeds(database, sha256, record.name, board)
        if speeds is None or speeds.campaign != campaign.id:
            continue
        shift = measured_shift(database, board, chip, without=sha256)
        for phase in PHASES:
            measured = speeds.decode if phase == "decode" else speeds.prefill
            case = case_of_record(record, chip, phase)
            if measured is None or case is None:
                continue
            seen = predict(phase, case, fitted()[phase], shift.get((record.engine, phase)))
            expected = (1.0 if phase == "decode" else case.prompt) / seen.seconds
            factor = measured / expected
            if max(factor, 1 / factor) > max(seen.within[0], _LEAST_FACTOR):
                yield Message(
                    "{placement}: {phase} {measured} tokens/s, estimated {low} to {high}: {cause}",
                    placement=record.name,
                    phase=_WORDS[phase],
                    measured=format_number(measured),
                    low=format_number(expected / seen.within[0]),
                    high=format_number(expected * seen.within[0]),
                    cause=_cause(record, board, phase, factor),
                )


def _cause(record: PlacementRecord, board: Board, phase: Phase, factor: float) -> Message:
    if factor > 1:
        return Message("faster than such machines usually are; estimates here follow this campaign from now on")
    threads, fast = record.settings.get("threads"), len(board.big_cpus)
    if record.unit == "cpu" and isinstance(threads, int) and threads < fast:
        return Message("it had {threads} threads, and there are {fast} fast cores", threads=threads, fast=fast)
    if record.unit == "cpu" and phase == "prefill" and 1 / factor > _KERNEL_FACTOR:
        return Message(
            "likely a build without this CPU's dot products or repacked weights; try: trilithon engines build"
        )
    governor = record.must_match.get("memory clock governor", "none")
    if governor not in ("none", "performance"):
        return Message(
            "likely the memory clock, whose governor is {governor}; try: trilithon bench --pin-clocks",
            governor=governor,
        )
    return Message("likely other programs, heat or a power limit; see: trilithon doctor")

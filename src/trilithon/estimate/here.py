"""The estimate of a model on this machine, for lists and for commands that fetch models: with the engine that comes
with Trilithon, or the one that a converted file is for."""

from dataclasses import dataclass

from trilithon.board.chips import Chip, find_chip
from trilithon.board.snapshot import Board
from trilithon.errors import UserError
from trilithon.estimate.answer import SpeedEstimate, Subject, estimates, known_engines
from trilithon.estimate.predict import Shift
from trilithon.estimate.recommend import fits
from trilithon.estimate.terms import machine_rates
from trilithon.settings import Configuration

__all__ = ["ThisMachine", "estimate_here", "this_machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisMachine:
    """`room` are the bytes of its memory, None where nobody says; `shift` is what campaigns here changed."""

    chip: Chip
    shift: Shift
    room: int | None

    def fits(self, row: SpeedEstimate) -> bool | None:
        return fits(row, self.room)


def this_machine(configuration: Configuration, board: Board) -> ThisMachine | None:
    """None where no estimate has a basis: the peak rates of the chip, or a campaign. Raises StoreError."""
    chip = find_chip(board.chip) or Chip(name="this machine", compatible="", npu_cores=0)
    shift: Shift = {}
    if configuration.results_database.is_file():
        from trilithon.estimate.local import measured_shift  # with the database, which many machines lack

        shift = measured_shift(configuration.results_database, board, chip.name)
    if not (shift or machine_rates(chip.name)):
        return None
    return ThisMachine(chip=chip, shift=shift, room=board.usable_memory_bytes)


def estimate_here(subject: Subject, machine: ThisMachine) -> SpeedEstimate | None:
    """None where its engine does not run on this chip, or nothing is known of the two."""
    engines = [
        name
        for name, row in known_engines().items()
        if (row.get("own_format", False) if subject.converted else row.get("usual", False))
        and (machine_rates(machine.chip.name) or (name, "decode") in machine.shift)
    ]
    try:
        rows = [row for name in engines for row in estimates(subject, [machine.chip], engine=name, shift=machine.shift)]
    except UserError:  # a chip or a quantisation that the engine does not run
        return None
    return max(rows, key=lambda row: row.decode.value, default=None)

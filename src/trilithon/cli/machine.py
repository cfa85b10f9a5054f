"""The machine that an estimate is for: a chip by its name, or this machine with what was measured on it."""

import re
from typing import TYPE_CHECKING

from trilithon.cli.output import shown
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.suggestions import alternatives
from trilithon.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trilithon.board.chips import Chip
    from trilithon.estimate.predict import Shift
    from trilithon.settings import Configuration

__all__ = ["chosen_chips", "figure", "room_bytes", "shift_here", "short_chip", "unknown_chip"]


def chosen_chips(name: str | None) -> "Sequence[Chip]":
    """Of `--chip`; without it, this machine's, which need not be in the table. Raises UserError."""
    from trilithon.board.chips import Chip, chips, find_chip
    from trilithon.board.snapshot import read_board

    if name is None:
        board = read_board()
        return (find_chip(board.chip) or Chip(name="this machine", compatible="", npu_cores=0),)
    if name.lower() == "all":
        from trilithon.estimate.terms import machine_rates

        return tuple(chip for chip in chips().values() if machine_rates(chip.name))
    short = short_chip(name)
    if (chip := find_chip(name) or find_chip(short)) is None:
        raise unknown_chip(name, (*chips(), "all"))
    return (chip,)


def unknown_chip(name: str, known: "Iterable[str]") -> UserError:
    fix = alternatives(short_chip(name), known)
    return UserError(Message("unknown chip {chip!r}; {fix}", chip=name[:40], fix=fix))


def short_chip(name: str) -> str:
    """What people write in other spellings: "rk3588s" of "Rockchip RK3588S" and "rk-3588s"."""
    return re.sub(r"^rockchip|[ ,_-]", "", name.strip().lower())


def shift_here(configuration: "Configuration", chip_name: str | None) -> "Shift":
    """What was measured on this machine; nothing for another one."""
    from trilithon.board.snapshot import read_board
    from trilithon.estimate.local import measured_shift

    if chip_name is not None:
        return {}
    return measured_shift(configuration.results_database, read_board(), chosen_chips(None)[0].name)


def room_bytes(memory: str | None, chip_name: str | None) -> int | None:
    """The memory that a model may take; None where it is not known."""
    from trilithon.board.limits.memory import read_memory

    if memory is not None:
        return parse_bytes(memory, name="--memory")
    return None if chip_name else read_memory().total_bytes


def figure(value: float) -> str:
    """Three digits, in the user's language."""
    return shown(Message("{value:.0f}", value=value) if value >= 100 else Message("{value:.3g}", value=value))

"""Changes to the kernel's files that are read back after they are made, and undone to the byte."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trilithon.board.cooling import is_cooled
from trilithon.board.sysfs import Machine, parse_count

__all__ = ["Change", "Undone", "make", "put_back", "tee"]

# A driver may round a clock that it is told; the steps of every table are further apart.
_ROUNDED_FRACTION = 0.01


@dataclass(frozen=True, slots=True)
class Change:
    """One file. `old` is its content before, None for a file that comes and goes with a governor. `new` is what to
    write, None for a file that is only kept in mind because another change makes the kernel forget its value.

    `effective` marks a clock limit: the kernel shows what it makes of it and of all other limits, a hot chip's
    among them, so that another value proves nobody's hand as long as the chip is being cooled."""

    path: str
    old: str | None
    new: str | None
    effective: bool = False


@dataclass(frozen=True, slots=True)
class Undone:
    """What came of putting back: the changes that failed, and a line for each of them and for each left alone."""

    failed: tuple[Change, ...]
    lines: tuple[str, ...]


def make(change: Change, machine: Machine) -> str:
    """Write it and look whether the kernel took it; returns what went wrong, or nothing."""
    return "" if change.new is None else _written(change.path, change.new, machine, cooled=False)


def put_back(changes: Sequence[Change], machine: Machine) -> Undone:
    """Undo them, the last one first. One that fails keeps none of the others back, and is tried once more.

    A value that is neither the old nor the new one was set by someone else: it is left alone."""
    cooled = is_cooled(machine)
    lines: list[str] = []
    failed: list[Change] = []
    for change in reversed(changes):
        problem, foreign = _undo(change, machine, cooled=cooled)
        if foreign:
            lines.append(foreign)
        elif problem:
            failed.append(change)
    still = []
    for change in failed:
        problem, _ = _undo(change, machine, cooled=cooled)
        if problem:
            still.append(change)
            lines.append(problem)
    if still:  # what a governor forgot can be told to it only when it is back
        still += [change for change in changes if change.new is None and not machine.exists(change.path)]
    return Undone(tuple(change for change in changes if change in still), tuple(lines))


def tee(changes: Iterable[Change]) -> str:
    """The command that a user types for what this process may not do."""
    paths: dict[str, list[str]] = {}
    for change in changes:
        if change.new is not None:
            paths.setdefault(change.new.strip(), []).append(change.path)
    return " && ".join(f"echo {text} | sudo tee {' '.join(files)}" for text, files in paths.items())


def _undo(change: Change, machine: Machine, *, cooled: bool) -> tuple[str, str]:
    """What went wrong, and who else was there; both empty when the old value stands."""
    if change.old is None:
        return "", ""
    shown = machine.raw(change.path)
    if shown is None:
        if machine.access(change.path) != "absent":
            return f"{change.path}: this user may not read it; it was {change.old.strip()}", ""
        return "", f"{change.path} is gone; it was {change.old.strip()}" if change.new is not None else ""
    if shown.strip() == change.old.strip():
        return "", ""
    known = change.new is None or _alike(shown, change.new) or (change.effective and cooled)
    if not known:
        text = f"someone has set {change.path} to {shown.strip()} meanwhile: left alone; it was {change.old.strip()}"
        return "", text
    problem = _written(change.path, change.old, machine, cooled=change.effective and cooled)
    return f"{problem}; it was {change.old.strip()}" if problem else "", ""


def _written(path: str, text: str, machine: Machine, *, cooled: bool) -> str:
    try:
        machine.write(path, text)
    except OSError as error:
        return f"{path}: {error.strerror}"
    shown = machine.text(path)
    if cooled or (shown is not None and _alike(shown, text)):
        return ""
    return f"{path}: the kernel shows {shown or 'nothing'} where {text.strip()} was written"


def _alike(shown: str, wanted: str) -> bool:
    clock, wanted_clock = parse_count(shown.strip()), parse_count(wanted.strip())
    if clock is not None and wanted_clock is not None:
        return abs(clock - wanted_clock) <= _ROUNDED_FRACTION * wanted_clock
    return shown.strip() == wanted.strip()

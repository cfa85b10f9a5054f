"""Clocks at their top for a while, and everything exactly as it was afterwards, however that while ends.

Also this process's limit of open files, for a while."""

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from trilithon.board.cooling import is_cooled
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.board.tuning import record as tuning_record
from trilithon.board.tuning.changes import Change, make, put_back, tee
from trilithon.board.tuning.tunables import Tunable, tunables
from trilithon.errors import UserError

__all__ = ["Outcome", "open_files", "pinned"]

Tell = Callable[[str], None]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A governor sets its clock before the write returns; firmware in between may take a moment.
_LOOKS, _LOOK_SECONDS = 5, 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of pinning one subject ("memory clock"): how it stands now, or what could not be done and the fix.
    One that is told right and held down by heat is pinned, and says so."""

    subject: str
    pinned: bool
    text: str

    def state(self) -> str:
        return f"pinned, {self.text}" if self.pinned else f"not pinned: {self.text}"

    def line(self) -> str:
        return f"{self.subject}: {self.state()}"


@contextlib.contextmanager
def pinned(
    folder: Path, tell: Tell, *, idle_states: bool = False, machine: Machine = THIS_MACHINE
) -> Iterator[tuple[Outcome, ...]]:
    """Take every clock to its top, and put everything back at the end; `tell` hears what went wrong then.

    What this user may not do becomes an Outcome. What was changed is on disk in `folder` before it is changed. In the
    main thread SIGINT, SIGTERM and SIGHUP become a KeyboardInterrupt where nobody else handles them.
    Raises UserError where another process has set the clocks, or the record cannot be kept."""
    with _stoppable(), ExitStack() as held:
        held.enter_context(tuning_record.lock(folder))
        left = tuning_record.restore(folder, machine)
        for line in left.lines:
            tell(f"clocks left over from before: {line}")
        if not left.done:
            raise UserError(
                "clocks are not as they were; run: {restore_command}",
                restore_command=tuning_record.restore_command(folder),
            )
        pin = _Pin(folder, machine)
        try:
            try:
                with _undisturbed():
                    outcomes = pin.set(tunables(machine, idle_states=idle_states))
                yield outcomes
            finally:
                pin.restore()
        finally:
            pin.restore()  # should a signal have come between the end and the line above; only one gets through
            for line in pin.lines:
                tell(line)


class _Pin:
    """What is changed now, in order. `lines` say what could not be put back."""

    def __init__(self, folder: Path, machine: Machine):
        self._folder = folder
        self._machine = machine
        self._made: list[Change] = []
        self._recorded = False
        self.lines: tuple[str, ...] = ()

    def set(self, selected: Sequence[Tunable]) -> tuple[Outcome, ...]:
        """Raises UserError, with nothing changed, when the record cannot be kept."""
        planned = [(tunable, tunable.changes(self._machine)) for tunable in selected]
        closed = [(tunable, changes) for tunable, changes in planned if self._is_closed(changes)]
        denied = {tunable: _denial(tunable.subject, closed) for tunable, _ in closed}
        allowed = [(tunable, changes) for tunable, changes in planned if tunable not in denied]
        changes = [change for _, changes in allowed for change in changes]
        if changes:
            tuning_record.save(tuning_record.new_record(_unique(changes), self._machine), self._folder)
            self._recorded = True
        problems = denied | {tunable: self._make(changes) for tunable, changes in allowed}
        self._await_clocks([tunable for tunable, _ in allowed if not problems[tunable]])
        return _outcomes([(tunable, problems[tunable]) for tunable in selected], self._machine)

    def restore(self) -> None:
        """Once is enough; a second call does nothing."""
        with _undisturbed():
            if not self._recorded:
                return
            undone = put_back(_unique(self._made), self._machine)
            self.lines = undone.lines
            if undone.failed:
                tuning_record.save(tuning_record.new_record(undone.failed, self._machine), self._folder)
                command = tuning_record.restore_command(self._folder)
                self.lines += (f"not all is as it was; run: {command}",)
            else:
                tuning_record.drop(self._folder)
            self._recorded = False
            self._made.clear()

    def _is_closed(self, changes: Sequence[Change]) -> bool:
        """Whether this user may not write one of them, or not read it: it could not be put back. A speed that comes
        with its governor is not there yet."""
        written = [change.path for change in changes if change.new is not None]
        return any(self._machine.exists(path) and not self._machine.usable(path) for path in written)

    def _make(self, changes: Sequence[Change]) -> str:
        """Returns what went wrong; what was changed of these until then is undone."""
        for number, change in enumerate(changes):
            self._made.append(change)
            problem = make(change, self._machine)
            if problem:
                # What the kernel made of it is ours to undo as well.
                self._made[-1] = replace(change, new=self._machine.raw(change.path))
                undone = put_back([*changes[:number], self._made[-1]], self._machine)
                return "; ".join((problem, *undone.lines))
        return ""

    def _await_clocks(self, selected: Sequence[Tunable]) -> None:
        for _ in range(_LOOKS):
            if not any(tunable.short_of(self._machine) for tunable in selected):
                return
            time.sleep(_LOOK_SECONDS)


def _unique(changes: Sequence[Change]) -> list[Change]:
    """Policies share what they all forget. The first stays: it is put back after the last governor is."""
    unique: dict[str, Change] = {}
    for change in changes:
        unique.setdefault(change.path, change)
    return list(unique.values())


def _denial(subject: str, closed: Sequence[tuple[Tunable, Sequence[Change]]]) -> str:
    """The same words for all tunables of a subject, and one command."""
    changes = [
        change for tunable, tunable_changes in closed if tunable.subject == subject for change in tunable_changes
    ]
    first = next(change.path for change in changes if change.new is not None)
    return f"this user may not write {first}; run: {tee(changes)}"


def _outcomes(problems: Sequence[tuple[Tunable, str]], machine: Machine) -> tuple[Outcome, ...]:
    """One per subject."""
    outcomes = []
    hot = is_cooled(machine)
    for subject in dict.fromkeys(tunable.subject for tunable, _ in problems):
        members = [(tunable, problem) for tunable, problem in problems if tunable.subject == subject]
        wrong = [problem or _unsteady(tunable, machine) for tunable, problem in members]
        short = [tunable.short_of(machine) for tunable, _ in members]
        reasons = list(dict.fromkeys(filter(None, wrong if any(wrong) or hot else short)))
        state = ", ".join(dict.fromkeys(tunable.read(machine) for tunable, _ in members))
        held = "; it is hot, and the kernel holds it down" if hot and any(short) else ""
        outcomes.append(Outcome(subject, not reasons, "; ".join(reasons) or state + held))
    return tuple(outcomes)


def _unsteady(tunable: Tunable, machine: Machine) -> str:
    return "" if tunable.steady(machine) else f"nothing keeps it at its top: {tunable.read(machine)}"


# -- signals


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """The first signal that would end this process raises KeyboardInterrupt in its place; later ones, which would
    come while things are being put back, do nothing. Handlers of others are left alone: they know what to do."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopped:
            stopped.append(number)
            raise KeyboardInterrupt

    unhandled = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _STOPPING}
    before = {number: handler for number, handler in before.items() if handler in unhandled}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that come in here are handled at its end. Blocking them would not do: the kernel would give them to
    another thread, and Python would handle them in this one all the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOPPING}
    # None is a handler that was not set by Python.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for fromkey in dict.fromkeys(came):
            handler = before[signal.Signals(fromkey)]
            if callable(handler):
                handler(fromkey, None)
            else:
                signal.raise_signal(fromkey)


# -- this process


@contextlib.contextmanager
def open_files(count: int) -> Iterator[int]:
    """The limit of open files at `count` at least, as far as the hard limit goes; gives what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

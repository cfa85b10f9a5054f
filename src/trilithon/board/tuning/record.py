"""What was changed on this machine and by whom, on disk before the first change: SIGKILL and power cuts undo nothing.

One file in the data folder; a lock beside it, held as long as its owner may still change something."""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.board.finding import Finding
from trilithon.board.processes import read_process
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.board.tuning.changes import Change, put_back
from trilithon.errors import UserError
from trilithon.files import JsonStore, file_lock, sync
from trilithon.language import Message

__all__ = ["Record", "Restored", "drop", "findings", "load", "lock", "new_record", "restore", "restore_command", "save"]

# Root may put back what a record says, and its folder belongs to a user: nothing but these is ever written.
_TUNABLE = re.compile(
    r"/sys/devices/system/cpu/cpufreq/[\w-]+/[\w-]+(/[\w-]+)?"
    r"|/sys/devices/system/cpu/cpu\d+/cpuidle/state\d+/disable"
    r"|/sys/class/devfreq/(?!\.)[^/\0]+/(governor|min_freq|max_freq|userspace/set_freq)"
    r"|/sys/kernel/debug/rknpu/freq|/proc/rknpu/freq",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`boot_id` is None where the kernel tells none; `start_ticks` names the owner together with `pid`."""

    boot_id: str | None
    pid: int
    start_ticks: int
    changes: tuple[Change, ...]

    def owner_lives(self) -> bool:
        state = read_process(self.pid)
        return state is not None and not state.ended and state.start_ticks == self.start_ticks

    def is_of_this_boot(self, machine: Machine) -> bool:
        return self.boot_id == _boot_id(machine)


@dataclass(frozen=True, slots=True)
class Restored:
    """`done` is false where something is still to be put back; the record then holds it."""

    done: bool
    lines: tuple[str, ...]


def new_record(changes: Sequence[Change], machine: Machine = THIS_MACHINE) -> Record:
    """This process's own."""
    state = read_process(os.getpid())
    ticks = state.start_ticks if state else 0
    return Record(boot_id=_boot_id(machine), pid=os.getpid(), start_ticks=ticks, changes=tuple(changes))


def save(record: Record, folder: Path) -> None:
    """Whole or not at all, and on the disk when this returns. Raises UserError where it cannot be kept."""
    _store(folder).write(asdict(record))


def load(folder: Path) -> Record | None:
    """None when there is none. Raises UserError for one that is closed to this user or garbled."""
    return _store(folder).read()


def drop(folder: Path) -> None:
    """Raises UserError when the folder does not let go of it."""
    try:
        _path(folder).unlink(missing_ok=True)
        sync(folder)
    except OSError as error:
        raise UserError(
            "{path}: {reason}; all is put back: remove it", path=_path(folder), reason=error.strerror
        ) from error


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Only one process of the machine changes clocks or puts them back. Raises UserError, naming the other one."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(_path(folder).with_suffix(".lock"), wait=False))
        except BlockingIOError:
            raise UserError(_in_use(load(folder))) from None
        except OSError as error:
            raise UserError(
                "{folder}: {reason}; set TRILITHON_DATA to a folder of yours", folder=folder, reason=error.strerror
            ) from error
        record = load(folder)
        if record is not None and record.pid != os.getpid() and record.owner_lives():
            raise UserError(_in_use(record))
        yield


def restore(folder: Path, machine: Machine = THIS_MACHINE) -> Restored:
    """Put back what a record says; call it under `lock`. Raises UserError for a record that cannot be read."""
    record = load(folder)
    if record is None:
        return Restored(True, ())
    if not record.is_of_this_boot(machine):
        drop(folder)
        return Restored(
            True, (Message("the machine was started anew since, and has the kernel's own clocks: nothing to do"),)
        )
    undone = put_back(record.changes, machine)
    if undone.failed:
        save(new_record(undone.failed, machine), folder)
        return Restored(False, undone.lines)
    drop(folder)
    return Restored(True, (*undone.lines, Message("put back what process {pid} had left", pid=str(record.pid))))


def findings(folder: Path, machine: Machine = THIS_MACHINE) -> Iterator[Finding]:
    """For the doctor: clocks that a process has pinned, or has left so."""
    try:
        record = load(folder)
    except UserError as error:
        yield Finding("clocks-left", "problem", "clocks", str(error))
        return
    if record is None:
        return
    if not record.is_of_this_boot(machine):
        message = Message(
            "a record of pinned clocks is left from before the machine was started anew; they are as usual"
        )
        yield Finding("clocks-left", "note", "clocks", message, "trilithon doctor --restore")
    elif record.owner_lives():
        message = Message("process {pid} keeps them at their top until it ends", pid=str(record.pid))
        yield Finding("clocks-left", "note", "clocks", message)
    else:
        message = Message(
            "process {pid} has pinned them and was killed; they are not as they were", pid=str(record.pid)
        )
        yield Finding("clocks-left", "warning", "clocks", message, restore_command(folder))


def restore_command(folder: Path) -> str:
    """For a shell; sudo would look for the record in root's own folder, and for the program on root's path."""
    program = Path(sys.executable).with_name("trilithon")
    words = ["sudo", "env", f"TRILITHON_DATA={folder}", str(program) if program.exists() else "trilithon"]
    return shlex.join([*words, "doctor", "--restore"])


def _path(folder: Path) -> Path:
    return folder / "tuning.json"


def _boot_id(machine: Machine) -> str | None:
    return machine.text("/proc/sys/kernel/random/boot_id")


def _in_use(record: Record | None) -> str:
    who = Message("process {pid}", pid=str(record.pid)) if record else Message("another process")
    return Message(
        "{who} has set the clocks and still runs: it puts them back when it ends; wait for it, or stop it", who=who
    )


def _store(folder: Path) -> JsonStore[Record]:
    """Readable by every user: root may have written it, and the doctor shows it to anyone."""
    fix = "remove it and restart the board, which resets the clocks"
    return JsonStore(path=_path(folder), parse=_parsed, fix=fix, mode=0o644)


def _parsed(data: Any) -> Record:
    changes = tuple(_change(change) for change in data["changes"])
    boot_id, pid, ticks = data["boot_id"], data["pid"], data["start_ticks"]
    if not isinstance(boot_id, str | None) or not isinstance(pid, int) or not isinstance(ticks, int):
        raise TypeError("not the owner's names")
    return Record(boot_id=boot_id, pid=pid, start_ticks=ticks, changes=changes)


def _change(data: Any) -> Change:
    path, old, new, effective = (data[name] for name in ("path", "old", "new", "effective"))
    if not isinstance(old, str | None) or not isinstance(new, str | None) or not isinstance(effective, bool):
        raise TypeError("not the values of a file")
    if not _TUNABLE.fullmatch(path):
        raise ValueError(f"not a file to tune: {path}")
    return Change(path, old, new, effective)

"""What the kernel says of a child that died: an NPU that hung or faulted, a kill for want of memory.

/dev/kmsg is read where this user may (root, or kernel.dmesg_restrict=0), else the journal (group adm or
systemd-journal). Without either there are no lines."""

import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.resources import files

from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.causes import CauseTable, cause_in, read_causes
from trilithon.runtime.diagnostics import Diagnosis

__all__ = ["KernelLog"]

_RECORD_BYTES = 1 << 13  # of one record (Documentation/ABI/testing/dev-kmsg)
# A line that is older has nothing to do with this death. The kernel's clock drifts from ours by up to this share.
_RECENT_SECONDS, _DRIFT = 120.0, 1e-4
_JOURNAL_SECONDS = 2.0
_MOST_LINES = 4
_MOST_BYTES = 1 << 16
_KILLED = re.compile(r"killed process (\d+)", re.IGNORECASE)


class KernelLog:
    """The lines about units and memory that the kernel writes from now on, until `close`."""

    def __init__(self, machine: Machine = THIS_MACHINE) -> None:
        self._opened = time.time()
        self._records: bytes | None = None  # None where they cannot be read
        self._file: int | None = None
        with suppress(OSError):  # there is none, or this user may not read it: then the journal is asked
            self._file = os.open(machine.root / "dev" / "kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)
            self._records = b""

    def close(self) -> None:
        """What was written until now is kept."""
        self._read()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def explained(self, diagnosis: Diagnosis, pid: int) -> Diagnosis:
        """With the kernel's lines at its end. They give the cause where the child's own log gives none."""
        lines = [line for line in self._lines() if _concerns(line, pid)][-_MOST_LINES:]
        reason = cause_in(_table(), lines)
        if reason is None:
            return diagnosis
        words = (*diagnosis.last_words, *(f"kernel: {line}" for line in lines))
        unknown = ("", diagnosis.signal, f"exit code {diagnosis.exit_code}")
        if diagnosis.cause in unknown or diagnosis.cause.startswith("killed from outside (SIGKILL)"):
            return replace(diagnosis, cause=reason.cause, advice=reason.advice, last_words=words)
        return replace(diagnosis, last_words=words)

    def _lines(self) -> list[str]:
        """The recent ones."""
        self._read()
        if self._records is None:
            return _journal(max(self._opened, time.time() - _RECENT_SECONDS))
        now = time.monotonic()
        oldest = now - _RECENT_SECONDS - now * _DRIFT
        # `priority,number,microseconds,flags;text`, and facts of a device in lines that begin with a space.
        records = (record.partition(";") for record in self._records.decode(errors="replace").split("\n"))
        return [text for head, _, text in records if _seconds(head) >= oldest]

    def _read(self) -> None:
        while self._file is not None:
            try:
                record = os.read(self._file, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were lost before they could be read; the next one follows
                continue
            if not record:
                return
            self._records = ((self._records or b"") + record)[-_MOST_BYTES:]


@cache
def _table() -> CauseTable:
    return read_causes(files(__package__) / "kernel.toml")


def _concerns(line: str, pid: int) -> bool:
    """A kill of another process is that one's cause of death."""
    killed = _KILLED.search(line)
    return cause_in(_table(), [line]) is not None and (killed is None or int(killed[1]) == pid)


def _seconds(head: str) -> float:
    parts = head.split(",")
    return int(parts[2]) / 1e6 if len(parts) > 2 and parts[2].isdecimal() else 0.0


def _journal(since: float) -> list[str]:
    command = ["journalctl", "--dmesg", "--quiet", "--no-pager", "--output=cat", f"--since=@{since:.0f}"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_JOURNAL_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):  # no systemd here, or a journal too slow to wait for
        return []
    return done.stdout.decode(errors="replace").splitlines()

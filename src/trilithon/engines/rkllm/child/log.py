"""What the RKLLM runtime prints: the facts of a load, and the reason of a failure, which its calls do not return."""

import ctypes
import os
import re
import stat
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from trilithon.engines.causes import CAUSES_FILE, CauseTable, cause_in, read_causes
from trilithon.engines.vendor_log import VendorErrors, vendor_line

__all__ = ["NativeLog", "Reason", "context_limit", "explain", "last_error", "load_facts"]

_LONGEST = 1 << 16
_LINE_BUFFERED = 1  # _IOLBF of stdio.h

_FACTS = re.compile(
    r"rkllm-toolkit version: (?P<toolkit>[^,\s]*), max_context_limit: (?P<context>\d+), "
    r"npu_core_num: (?P<cores>\d+), target_platform: (?P<platform>[^,\s]*), model_dtype: (?P<dtype>[^,\s]*)"
)
# "E …: text" of a library, and the last line of Python's traceback, which rknnlite prints with "E " or without.
_PYTHON_ERROR = re.compile(r"(?:E )?\s*([\w.]*(?:Error|Exception): .+)")
_LIMIT = re.compile(r"must be less than the model's max_context_limit\[(\d+)\]")


class NativeLog:
    """The output of this process and its libraries, where it goes to a file that can be read back.

    A pipe would lose the last lines in a crash."""

    def __init__(self) -> None:
        _buffer_by_line()
        regular = stat.S_ISREG(os.fstat(2).st_mode)
        self._file = os.open("/proc/self/fd/2", os.O_RDONLY | os.O_CLOEXEC) if regular else None
        self.mark()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def mark(self) -> None:
        """`text` begins here."""
        self._from = 0 if self._file is None else os.fstat(self._file).st_size

    def errors(self) -> VendorErrors:
        """Those that are printed from now on."""
        return VendorErrors(self._file)

    def text(self) -> str:
        if self._file is None:
            return ""
        start = max(self._from, os.fstat(self._file).st_size - _LONGEST)
        return os.pread(self._file, _LONGEST, start).decode(errors="replace")


def _buffer_by_line() -> None:
    """C's stdout buffers what goes to a file, and a crash would lose it."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, ctypes.c_int(_LINE_BUFFERED), ctypes.c_size_t(0))


def load_facts(log: str) -> dict[str, str]:
    """`toolkit`, `context`, `cores`, `platform` and `dtype` of the loaded model; empty where the log has none."""
    match = _FACTS.search(log)
    return match.groupdict() if match else {}


def context_limit(log: str) -> int | None:
    """The context of the model, where a load failed because a longer one was requested."""
    match = _LIMIT.search(log)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a call failed. `message` ends with the fix; `status` and `kind` are those of the HTTP answer."""

    message: str
    status: int = 500
    kind: str = "server_error"


@cache
def _causes() -> CauseTable:
    return read_causes(files("trilithon.engines.rkllm") / CAUSES_FILE)


def explain(log: str) -> Reason | None:
    """The reason that the log has for a failure, before its consequences; None where it has none."""
    reason = cause_in(_causes(), log.splitlines(), log=log)
    return Reason(f"{reason.cause}; {reason.advice}", reason.known.status, reason.known.kind) if reason else None


def last_error(log: str) -> str:
    """What the last error line of a vendor's library or of Python says; empty where there is none."""
    for line in reversed(log.splitlines()):
        if match := _PYTHON_ERROR.match(line):
            return match[1].strip()
        if (vendor := vendor_line(line)) and vendor.level == "E":
            return vendor.text
    return ""

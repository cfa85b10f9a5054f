"""What the RKLLM runtime prints: the facts of a load, and the reason of a failure, which its calls do not return.

The messages are the runtime's own strings, as they were published for 1.2.x; they come without warranty for others.
"""

import ctypes
import os
import re
import stat
from dataclasses import dataclass

__all__ = ["NativeLog", "Reason", "context_limit", "explain", "load_facts"]

_LONGEST = 1 << 16
_LINE_BUFFERED = 1  # _IOLBF of stdio.h

_FACTS = re.compile(
    r"rkllm-toolkit version: (?P<toolkit>[^,\s]*), max_context_limit: (?P<context>\d+), "
    r"npu_core_num: (?P<cores>\d+), target_platform: (?P<platform>[^,\s]*), model_dtype: (?P<dtype>[^,\s]*)"
)
_LIMIT = re.compile(r"must be less than the model's max_context_limit\[(\d+)\]")


class NativeLog:
    """What the process and the libraries in it have written, where that goes to a file that can be read back.

    It is not caught with a pipe: a crash would take along what was still in it, the last words among them.
    """

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
        """What follows is what `text` gives."""
        self._from = 0 if self._file is None else os.fstat(self._file).st_size

    def text(self) -> str:
        if self._file is None:
            return ""
        start = max(self._from, os.fstat(self._file).st_size - _LONGEST)
        return os.pread(self._file, _LONGEST, start).decode(errors="replace")


def _buffer_by_line() -> None:
    """C's stdout keeps what goes to a file in a buffer, and a crash would take it along."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, ctypes.c_int(_LINE_BUFFERED), ctypes.c_size_t(0))


def load_facts(log: str) -> dict[str, str]:
    """`toolkit`, `context`, `cores`, `platform` and `dtype` of the loaded model; empty when nothing was told."""
    found = _FACTS.search(log)
    return found.groupdict() if found else {}


def context_limit(log: str) -> int | None:
    """The context that the model was made for, when a load failed because more was asked for."""
    found = _LIMIT.search(log)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a call failed. `message` ends with the fix; `status` is what HTTP calls it, `kind` llama-server's word."""

    message: str
    status: int = 500
    kind: str = "server_error"


# What gives it away (a part of the line, in lower case), what went wrong, and what fixes it.
_FAULTS = (
    (
        "your platform is unknown",
        "the NPU runtime does not recognise this chip",
        "`trilithon doctor` says whether the NPU's driver is the vendor's, 0.9.8 or newer",
    ),
    (
        "platform error, must be",
        "the NPU runtime does not support this chip",
        "run the model on another unit",
    ),
    ("target_platform does not match", "the model was converted for another chip", "get or convert it for this one"),
    ("max_context_limit[", "the context is longer than the model was converted for", "choose a shorter one"),
    (
        "rkllm-runtime version is lower",
        "the NPU runtime is older than the model",
        "install librkllmrt.so of the toolkit's version",
    ),
    (
        "the model version is too old",
        "the model is too old for this NPU runtime",
        "convert it again, or use an older librkllmrt.so",
    ),
    ("invalid rkllm model", "this is no RKLLM model, or a damaged one", "fetch it again and compare its sha256"),
    (
        "failed to open rknpu module",
        "the NPU's driver cannot be opened",
        "load it and let this user open its device: `trilithon doctor`",
    ),
)
_SCARCE = (
    (
        "failed to malloc npu memory",
        "the NPU's memory is full: a domain holds 4 GB",
        "end what else holds it, or choose another domain or a smaller model",
    ),
    (
        "too many open files",
        "too many open files",
        "raise the limit: ulimit -n 102400 (systemd: LimitNOFILE=102400)",
    ),
)
_TOO_LONG = (
    (
        "prompt is greater than max context",
        "the prompt is longer than the context",
        "shorten it, or choose a longer one",
    ),
    ("context is not enough", "the context is not enough", "shorten the prompt, or choose a longer context"),
)
_INVALID = (
    (
        "n_keep must be less than",
        "more tokens are to be kept than the context holds",
        "choose a smaller keep_tokens or a longer context",
    ),
    ("must contain the <image> tag", "a picture came without its place in the prompt", "put the <image> tag there"),
    ("failed to open lora", "the LoRA adapter cannot be opened", "check its path"),
    ("failed to load prompt cache", "this is no prompt cache of this model", "save it again"),
    ("failed to open prompt cache", "the prompt cache cannot be written", "check the folder and its free space"),
)
_KNOWN = {
    sign: Reason(f"{what}; {fix}", status, kind)
    for faults, status, kind in (
        (_FAULTS, 500, "server_error"),
        (_SCARCE, 503, "unavailable_error"),
        (_TOO_LONG, 400, "exceed_context_size_error"),
        (_INVALID, 400, "invalid_request_error"),
    )
    for sign, what, fix in faults
}


def explain(log: str) -> Reason | None:
    """The reason that stands last in what the runtime wrote; None when nothing of it is known."""
    for line in reversed(log.lower().splitlines()):
        for sign, reason in _KNOWN.items():
            if sign in line:
                return reason
    return None

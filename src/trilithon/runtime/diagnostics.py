"""Why a child ended, in words: signal or exit code, known causes with advice, its last lines.

The known causes are in files: causes.toml in this folder for any child, and one in the folder of each engine."""

import functools
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from trilithon.engines.causes import CAUSES_FILE, CauseTable, LogCause, cause_in, read_causes
from trilithon.engines.table import cause_tables
from trilithon.engines.vendor_log import vendor_line, without_time

__all__ = ["Diagnosis", "diagnose", "known_causes", "settings_help"]

# Causes that are found without a log, and that no setting of the engine changes. SIGKILL is not among them: the kernel
# sends it when the memory is full, and then settings help.
_UNFIXABLE = frozenset({"NPU in use", *(f"killed from outside ({name})" for name in ("SIGTERM", "SIGINT", "SIGHUP"))})

_LAST_WORDS = 8
_LONGEST_LINE = 300
_LONGEST_LOG = 1 << 16
# An assertion's backtrace may follow the fatal line; a warning further up says nothing about this death.
_SEARCHED_LINES = 80

_NUMBER = re.compile(r"\d+")
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")

# What gdb says, which llama.cpp runs on itself when it aborts: it says where, and pushes out the line that says why.
_BACKTRACE = re.compile(
    r"#\d+ |\d+\t?\s*(in )?\.\./|0x[0-9a-f]{8,} in |\[(New LWP|Thread debugging|Inferior)|Using host lib"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`cause` and `advice` are short and may be empty (nothing went wrong, or nothing is known).

    `signal` is "segmentation fault (SIGSEGV)" or empty; `exit_code` is None when a signal ended the child or when
    it is still alive. `last_words` are the last lines of its log, and the one that says why, cleaned and bounded.
    `own_memory`: the process itself got no more memory; a device or a driver may be out of memory without that."""

    cause: str
    advice: str
    last_words: tuple[str, ...]
    signal: str
    exit_code: int | None
    own_memory: bool = False


_OUT_OF_MEMORY = "out of memory"  # causes.toml
# What allocators of C, C++, Rust, Python and of llama.cpp's CPU buffers print, and what names other memory than theirs.
_ALLOCATOR = re.compile(
    r"bad_alloc|memoryerror|cannot allocate memory|insufficient memory|\bcpu\S* buffer|memory allocation of \d+ bytes",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"vulkan|opencl|rknn|rkllm|rknpu|iommu|panthor|panfrost|device|ioctl|rga|"
    r"\b(?:vk|cl|gpu|npu|mali|drm|dma|gem|cma)(?![a-z])",
    re.IGNORECASE,
)
_MEMORY_ADVICE = "choose a smaller quantization or a shorter context, or end other programs"
_STOPS: frozenset[int] = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP})
_SIGNAL_ADVICE: dict[int, str] = {
    signal.SIGSEGV: "a bug in the engine or its driver: try another build or other settings",
    signal.SIGBUS: "the model file changed or was cut while in use, or its disk failed; check the file",
    signal.SIGXFSZ: "a file grew over the limit: ulimit -f",
    signal.SIGSYS: "a sandbox forbids what the engine does; run it outside",
}


def diagnose(
    returncode: int | None,
    log_tail: str,
    *,
    killed_by_us: bool,
    oom_kills_before: int | None,
    oom_kills_after: int | None,
) -> Diagnosis:
    """Why a child ended. `returncode` is negative for a signal, as in subprocess, and None while the child lives.

    `killed_by_us` says that Trilithon sent the signal; `oom_kills_*` are the kernel's counter at the start of the child
    and after its end."""
    lines = _clean(log_tail)
    number = _signal_number(returncode)
    reason: LogCause | None = None
    if killed_by_us and (returncode == 0 or number in _STOPS):
        cause, advice = "", ""
    elif number == signal.SIGKILL:
        cause, advice = _killed(oom_kills_before, oom_kills_after)
    elif number in _STOPS:
        cause, advice = f"killed from outside ({signal.Signals(number).name})", "look who ended it, and start again"
    else:
        reason = _known(lines, number)
        cause, advice = (reason.cause, reason.advice) if reason else _unknown(returncode, number)
    return Diagnosis(
        cause=cause,
        advice=advice,
        last_words=_last_words(lines, reason),
        signal=_signal_name(number),
        exit_code=None if returncode is None or returncode < 0 else returncode,
        own_memory=reason is not None and _is_own_memory(reason),
    )


def _is_own_memory(reason: LogCause) -> bool:
    line = reason.line
    return reason.cause == _OUT_OF_MEMORY and bool(_ALLOCATOR.search(line)) and not _DEVICE.search(line)


def _killed(before: int | None, after: int | None) -> tuple[str, str]:
    if before is not None and after is not None and after > before:
        return "killed by the kernel: out of memory", _MEMORY_ADVICE
    return ("killed from outside (SIGKILL), most often out of memory", f"{_MEMORY_ADVICE}; `dmesg` says who ended it")


def settings_help(cause: str) -> bool:
    """Whether other settings of the engine may change this outcome."""
    return cause not in _UNFIXABLE and known_causes().settings_help(cause)


@functools.cache
def known_causes() -> CauseTable:
    """An engine's own causes take precedence over those of any child."""
    return CauseTable.merged([*cause_tables(), read_causes(files(__package__) / CAUSES_FILE)])


def _known(lines: Sequence[str], number: int | None) -> LogCause | None:
    if number == signal.SIGILL:
        lines = ["illegal instruction"]  # the signal itself is the proof, whatever was printed before
    return cause_in(known_causes(), _recent(lines), log="\n".join(lines), died=True)


def _recent(lines: Sequence[str]) -> list[str]:
    """The last lines; of those that a vendor's library prints for every token or buffer only the last."""
    kept: list[str] = []
    seen: set[str] = set()
    for line in reversed(lines):
        form = _NUMBER.sub("0", without_time(line))
        if form in seen and vendor_line(line):
            continue
        seen.add(form)
        kept.append(line)
        if len(kept) == _SEARCHED_LINES:
            break
    return kept[::-1]


def _last_words(lines: Sequence[str], reason: LogCause | None) -> tuple[str, ...]:
    """With the line that says why, also where others came after it."""
    words = [line for line in lines if not _BACKTRACE.match(line)][-_LAST_WORDS:]
    if reason and reason.line in lines and reason.line not in words:
        words = [reason.line, *words[1:]]
    return tuple(words)


def _unknown(returncode: int | None, number: int | None) -> tuple[str, str]:
    if returncode is None:
        return "", ""
    if number is not None:
        return _signal_name(number), _SIGNAL_ADVICE.get(number, "")
    if returncode == 0:
        return "ended by itself (exit code 0)", ""
    return f"exit code {returncode}", ""


def _signal_number(returncode: int | None) -> int | None:
    """The signal behind a return code, also behind a shell's 128 + signal."""
    if returncode is None:
        return None
    if returncode < 0:
        return -returncode
    return returncode - 128 if _named(returncode - 128) else None


def _named(number: int) -> signal.Signals | None:
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _signal_name(number: int | None) -> str:
    if number is None:
        return ""
    named = _named(number)
    words = signal.strsignal(number) if named else None
    if named is None or words is None:
        return f"signal {number}"
    return f"{words.lower()} ({named.name})"


def _clean(text: str) -> list[str]:
    """The lines that hold something, without escape sequences and control characters, none of them endless."""
    lines = []
    for line in _ESCAPES.sub("", text[-_LONGEST_LOG:]).splitlines():
        shown = "".join(
            character if character.isprintable() else " " if character.isspace() else "" for character in line
        ).strip()
        if shown:
            lines.append(shown if len(shown) <= _LONGEST_LINE else shown[: _LONGEST_LINE - 1] + "…")
    return lines

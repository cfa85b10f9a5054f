"""Why a child ended, in words: signal or exit code, known causes with advice, its last lines. Pure.

The known messages are facts about other programs: llama.cpp's were provoked with its server (build of late 2026) or
are strings of its Vulkan backend; those of the NPU are from users' reports and the runtimes' own strings.
"""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["BEYOND_SETTINGS", "Diagnosis", "diagnose"]

BEYOND_SETTINGS = frozenset(
    {
        "not a GGUF file",
        "model file cut short or damaged",
        "model architecture unknown to this build",
        "model file does not fit this build",
        "model file cannot be opened",
        "not an RKLLM model",
        "a shared library is missing",
        "librknnrt.so is missing",
        "chip unknown to this build (RKNPU_DEVICE)",
        "the NPU runtime cannot tell the chip",
        "this chip is not one that the NPU runtime takes",
        "model converted for another chip",
        "NPU runtime older than the model",
        "model too old for the NPU runtime",
        "NPU driver cannot be opened",
        "NPU in use",
        "build made for a newer system",
        "build made for another CPU",
        "disk full",
        "the engine's program cannot be started",
        "CPUs that this machine or container does not give",
        # Of SIGKILL the kernel makes use too, when the memory is full, and then less of it may help.
        "killed from outside (SIGTERM)",
        "killed from outside (SIGINT)",
        "killed from outside (SIGHUP)",
    }
)
"""Causes that no setting of the engine fixes: they lie in the model's file, the installation, the system or a user."""

_LAST_WORDS = 8
_LONGEST_LINE = 300
_LONGEST_LOG = 1 << 16
# An assertion's backtrace may follow the fatal line; a warning further up says nothing about this death.
_SEARCHED_LINES = 80

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")

# What gdb says, which llama.cpp runs on itself when it aborts: it says where, and pushes out the line that says why.
_BACKTRACE = re.compile(
    r"#\d+ |\d+\t?\s*(in )?\.\./|0x[0-9a-f]{8,} in |\[(New LWP|Thread debugging|Inferior)|Using host lib"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`cause` and `advice` are short and may be empty (nothing went wrong, or nothing is known).

    `signal` is "segmentation fault (SIGSEGV)" or empty; `exit_code` is None when a signal ended the child or when
    it is still alive. `last_words` are the last lines of its log, cleaned and bounded.
    """

    cause: str
    advice: str
    last_words: tuple[str, ...]
    signal: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class _Known:
    """A cause, and the parts of lines (lower case) that give it away; any one is enough."""

    cause: str
    advice: str
    signs: tuple[str, ...]


_SMALLER = "choose a smaller quantization or a shorter context, or end other programs"
_FETCH_AGAIN = "fetch the file again and compare its size and sha256"
_NEWER_BUILD = "use a newer build of the engine, or another conversion of the model"
_RECONVERT = "convert the model again with the toolkit of the runtime's version"
_SHORTER = "shorten the prompt, or choose a longer context"
_BOARD_RESET = "let only one process use the NPU at a time; `dmesg` says more, a restart of the board clears it"

_KNOWN = (
    # llama.cpp: the command line
    _Known(
        "this build does not know one of its options",
        "use a newer build of the engine, or leave the setting out that the last lines name",
        ("error: invalid argument: --", "error while handling argument"),
    ),
    # llama.cpp: the file
    _Known("not a GGUF file", _FETCH_AGAIN, ("invalid magic characters", "failed to read magic")),
    _Known(
        "model file cut short or damaged",
        _FETCH_AGAIN,
        ("is not within the file bounds", "corrupted or incomplete", "exceeds remaining file size", "corrupted model"),
    ),
    _Known("model architecture unknown to this build", _NEWER_BUILD, ("unknown model architecture",)),
    _Known(
        "model file does not fit this build",
        _NEWER_BUILD,
        ("unknown pre-tokenizer type", "missing tensor", "wrong number of tensors", "has wrong shape"),
    ),
    _Known(
        "model file cannot be opened",
        "check that the path is right and may be read",
        ("failed to open gguf file", "gguf_init_from_file: failed to open"),
    ),
    # llama.cpp: memory
    _Known(
        "out of GPU memory",
        _SMALLER,
        (
            "outofdevicememory",
            "device memory allocation of size",
            "ggml_vulkan: memory allocation of size",
            "requested preallocation size is too large",
            "exceeds device buffer size limit",
            "no suitable memory type found",
            "failed to allocate vulkan",
        ),
    ),
    _Known(
        "out of memory",
        _SMALLER,
        (
            "insufficient memory",
            "cannot allocate memory",
            "bad_alloc",
            "memoryerror",
            "outofhostmemory",
            "not enough space in the buffer",
            "not enough space in the context's memory pool",
        ),
    ),
    # llama.cpp: the GPU and settings
    _Known(
        "GPU lost (Vulkan device lost)",
        "choose a smaller micro-batch (-ub) or a newer GPU driver; `dmesg` says more",
        (
            "errordevicelost",
            "devicelosterror",
            "ggml_vulkan: device lost",
            "vk_error_device_lost",
            "ggml_vulkan: device fault",
        ),
    ),
    _Known(
        "a tensor larger than the GPU takes in one buffer",
        "choose a shorter context or smaller KV types, or keep the cache in main memory: kv=off",
        ("that cannot run the operation (none)",),
    ),
    _Known(
        "the GPU's driver cannot compile a shader",
        "use a newer GPU driver, or give up what it trips over: f16=off, coopmat=off",
        ("compute pipeline creation failed", "errorinvalidshader"),
    ),
    _Known(
        "the GPU lacks what the engine's Vulkan needs",
        "run the model on another unit",
        ("does not support 16-bit storage", "shared memory size too small", "no suitable queue family index"),
    ),
    _Known(
        "no usable Vulkan GPU",
        "`trilithon doctor` says what is missing",
        ("ggml_vulkan: no devices found", "vulkan 1.2 required", "errorincompatibledriver"),
    ),
    _Known(
        "a quantized V cache needs flash attention",
        "add -fa on, or take -ctv f16",
        ("quantized v cache requires flash", "quantized v cache was requested"),
    ),
    # rk-llama.cpp and librknnrt
    _Known(
        "out of NPU memory (IOMMU domains full)",
        "choose a smaller model, fewer NPU weights or another domain; close what else holds the NPU",
        ("out of memory in allowed iommu domains", "out of memory in all iommu domains", "failed to malloc npu memory"),
    ),
    _Known(
        "NPU driver cannot be opened",
        "check that the driver is loaded and the device node may be opened: `trilithon doctor`",
        ("failed to open rknpu module", "failed to open /dev/accel", "failed to open /dev/rknpu"),
    ),
    _Known(
        "chip unknown to this build (RKNPU_DEVICE)",
        "run the model on another unit, or take a fork that knows the chip",
        ("failed to initialize rknpu backend", "failed to initialize the rknpu backend"),
    ),
    _Known(
        "librknnrt.so is missing",
        "run the fork where it was compiled, since it finds the library by that path, or install librknnrt",
        ("librknnrt.so: cannot open",),
    ),
    _Known("the NPU refused the work", _BOARD_RESET, ("rknn: failed to submit", "rknpu: failed to submit")),
    _Known(
        "number format unknown to this NPU",
        "choose another quantization or NPU pipeline",
        ("unsupported matmul dtype",),
    ),
    # RKLLM runtime (its own strings, as published for 1.2.x; the unknown platform is rknn-llm's issue 530)
    _Known(
        "the NPU runtime cannot tell the chip",
        "look whether the NPU's driver is the vendor's, 0.9.8 or newer: `trilithon doctor`",
        ("your platform is unknown",),
    ),
    _Known(
        "this chip is not one that the NPU runtime takes",
        "run the model on another unit",
        ("platform error, must be",),
    ),
    _Known(
        "model converted for another chip",
        "get or convert the model for this chip",
        ("target_platform does not match",),
    ),
    _Known(
        "context longer than the model was converted for",
        "choose a shorter context",
        ("must be less than the model's max_context_limit",),
    ),
    _Known(
        "NPU runtime older than the model",
        "install the runtime of the toolkit's version",
        ("rkllm-runtime version is lower",),
    ),
    _Known("model too old for the NPU runtime", _RECONVERT, ("the model version is too old",)),
    _Known("not an RKLLM model", _FETCH_AGAIN, ("invalid rkllm model",)),
    _Known("prompt longer than the context", _SHORTER, ("prompt is greater than max context", "context is not enough")),
    _Known("more tokens to keep than the context holds", _SHORTER, ("n_keep must be less than",)),
    _Known(
        "picture given without its place in the prompt",
        "put the <image> tag into the prompt",
        ("multimodal input must contain",),
    ),
    # the system
    _Known(
        "too many open files",
        "raise the limit: ulimit -n 65536, for RKLLM 102400 (systemd: LimitNOFILE=102400)",
        ("too many open files",),
    ),
    _Known(
        "address already in use",
        "end the program that listens there, or choose another address",
        ("address already in use", "address in use", "couldn't bind"),
    ),
    _Known(
        "a shared library is missing",
        "install the library that the last lines name, or compile the engine here",
        ("error while loading shared libraries", "cannot open shared object file"),
    ),
    _Known("build made for a newer system", "compile the engine here", ("' not found (required by",)),
    _Known("disk full", "make room, or choose another folder", ("no space left on device",)),
    _Known(
        "build made for another CPU",
        "use a build for this CPU, or compile the engine here",
        ("illegal instruction", "exec format error"),
    ),
    _Known(
        "the engine's program cannot be started",
        "`trilithon doctor` lists the builds that are usable",
        ("trilithon guard: cannot start",),
    ),
    _Known(
        "CPUs that this machine or container does not give",
        "choose among those that the last line lists",
        ("trilithon guard: cpus",),
    ),
)

# Lines that a better one goes before: looked for only when none of the above is there.
_CONSEQUENCES = (_Known("out of memory", _SMALLER, ("failed to allocate", "unable to allocate", "out of memory")),)

# And those that go with every failure of their kind.
_GENERAL = (
    _Known("the model could not be loaded", "the last lines say why", ("failed to load model", "error loading model")),
    _Known(
        "the context could not be made",
        "choose a shorter context or other KV types",
        ("failed to create context", "failed to create_context", "failed to initialize the context"),
    ),
    _Known(
        "a check inside the engine failed",
        "try other settings or another build; the last lines belong in a report to its makers",
        ("ggml_assert", "ggml_abort", "assertion"),
    ),
    _Known("error inside the engine", "", ("terminate called", "panicked at", "traceback (most recent call last)")),
)

# Lines with these are warnings: the engine goes on with less.
_HARMLESS = ("pinned memory", "trilithon guard: note", "fit params", "retrying", "falling back")

# What went wrong before a child began anew, and was fixed thereby, is not what it died of.
_BEGUN_ANEW = ("note: the context is cut to",)

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
    """Judge an end. `returncode` is negative for a signal, as in subprocess, and None while the child lives.

    `killed_by_us` says that we sent what ended it; `oom_kills_*` are the counter at its start and after its end.
    """
    lines = _clean(log_tail)
    number = _signal_number(returncode)
    if killed_by_us and (returncode == 0 or number in _STOPS):
        cause, advice = "", ""
    elif number == signal.SIGKILL:
        cause, advice = _killed(oom_kills_before, oom_kills_after)
    elif number in _STOPS:
        cause, advice = f"killed from outside ({signal.Signals(number).name})", "look who ended it, and start again"
    else:
        cause, advice = _known(lines, number) or _unknown(returncode, number)
    return Diagnosis(
        cause=cause,
        advice=advice,
        last_words=tuple([line for line in lines if not _BACKTRACE.match(line)][-_LAST_WORDS:]),
        signal=_signal_name(number),
        exit_code=None if returncode is None or returncode < 0 else returncode,
    )


def _killed(before: int | None, after: int | None) -> tuple[str, str]:
    if before is not None and after is not None and after > before:
        return "killed by the kernel: out of memory", _SMALLER
    return "killed from outside (SIGKILL), most often out of memory", f"{_SMALLER}; `dmesg` says who ended it"


def _known(lines: Sequence[str], number: int | None) -> tuple[str, str] | None:
    if number == signal.SIGILL:
        lines = ["illegal instruction"]  # the signal itself is the proof, whatever was printed before
    searched = [line.lower() for line in lines[-_SEARCHED_LINES:]]
    anew = [place for place, line in enumerate(searched) if any(sign in line for sign in _BEGUN_ANEW)]
    searched = searched[anew[-1] :] if anew else searched
    for causes in (_KNOWN, _CONSEQUENCES, _GENERAL):
        for line in reversed(searched):
            if any(sign in line for sign in _HARMLESS):
                continue
            if known := _first(causes, line):
                return known.cause, known.advice
    return None


def _first(causes: Iterable[_Known], line: str) -> _Known | None:
    return next((known for known in causes if any(sign in line for sign in known.signs)), None)


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
        shown = "".join(each if each.isprintable() else " " if each.isspace() else "" for each in line).strip()
        if shown:
            lines.append(shown if len(shown) <= _LONGEST_LINE else shown[: _LONGEST_LINE - 1] + "…")
    return lines

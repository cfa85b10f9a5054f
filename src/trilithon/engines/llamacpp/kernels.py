"""For which instructions a llama.cpp was compiled, against those that this CPU has.

A copy that must run on every Arm CPU has no dot product, which costs a factor of 2 to 3 at prefill on a Cortex-A76. Its
own system line says what it has ("CPU : NEON = 1 | ARM_FMA = 1"). A copy with run-time dispatch (Debian's package) has
a plug-in for each generation of CPUs, and says which one it has loaded."""

import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from trilithon.errors import UserError
from trilithon.files import JsonStore

__all__ = ["ADVICE", "embedded_system_line", "lacking", "loaded_variant", "system_line"]

ADVICE = "trilithon engines build"

_PROBE_SECONDS = 60.0  # 100 MB from an SD card
# The kernel's name of an instruction set (Features of /proc/cpuinfo), ggml's name of it, and what people call it.
_SETS = (("asimddp", "DOTPROD", "dot product"), ("i8mm", "MATMUL_INT8", "8-bit matrix multiplication"))
# ggml's plug-ins for Arm (ggml/src/CMakeLists.txt): 8.0_1 has neither; 8.2_1 and newer have the dot product, 8.6_1 and
# newer both.
_VARIANT = re.compile(r"armv(\d+)\.(\d+)_\d+")
_SINCE: Mapping[str, tuple[int, int]] = {"DOTPROD": (8, 2), "MATMUL_INT8": (8, 6)}
_LINE = re.compile(r"\bCPU : (\w+ = \d[^\n]*)")
_LOADED = re.compile(r"load_backend: loaded CPU backend from \S*/libggml-cpu-([\w.]+)\.so")


def lacking(system: str, variant: str, features: Collection[str]) -> tuple[str, ...]:
    """What the CPU has and the copy was compiled without, in words. `system` is its system line, `variant` its plug-in;
    with neither, or for another architecture than Arm, nothing is known to lack."""
    has = _sets_of(system, variant)
    return () if has is None else tuple(words for flag, name, words in _SETS if flag in features and name not in has)


def system_line(text: str) -> str:
    """The features of the CPU's kernels in a log or output: "NEON = 1 | ARM_FMA = 1"; empty where it has none."""
    match = _LINE.search(text)
    return match[1].strip(" |") if match else ""


def loaded_variant(text: str) -> str:
    """The plug-in that a program says it has loaded: "armv8.2_2"; empty for a program without plug-ins."""
    match = _LOADED.search(text)
    return match[1] if match else ""


def embedded_system_line(cache_folder: Path, features: Collection[str]) -> str:
    """The system line of the llama.cpp in the wheel; empty where `features` has nothing that it could lack. A child
    process prints it, since it loads the library; then it is kept in `cache_folder`."""
    if not any(flag in features for flag, _, _ in _SETS):
        return ""
    spec = find_spec("xllamacpp")
    place = spec.origin if spec and spec.origin else ""
    return _printed(cache_folder / "kernels" / f"xllamacpp-{version('xllamacpp')}.json", place)


@cache
def _printed(path: Path, place: str) -> str:
    store = JsonStore(path=path, parse=lambda content: str(content[place]), fix="remove it")
    with suppress(UserError):  # unreadable, or of a wheel in another place: it is printed again
        if kept := store.read():
            return kept
    program = [sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded", "--system-info"]
    try:
        printed = subprocess.run(program, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # what is wrong with the wheel is found where it is started
    line = system_line(printed.stdout)
    if line:
        with suppress(UserError):  # a cache that is read-only or full costs time only
            store.write({place: line})
    return line


def _sets_of(system: str, variant: str) -> set[str] | None:
    """ggml's names of the sets that it was compiled for; None where that is not known."""
    if match := _VARIANT.fullmatch(variant):
        architecture = int(match[1]), int(match[2])
        return {name for name, least in _SINCE.items() if architecture >= least}
    pairs = dict(re.findall(r"(\w+) = (\d+)", system))
    return {name for name, value in pairs.items() if value != "0"} if "NEON" in pairs else None

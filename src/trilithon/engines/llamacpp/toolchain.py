"""Whether this machine can compile llama.cpp (compiler, CMake, Vulkan's tools), and what to install where it cannot."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trilithon.board.snapshot import read_board
from trilithon.errors import UserError
from trilithon.tables import table_beside
from trilithon.units import format_bytes

__all__ = ["Toolchain", "choose_jobs", "compiler_accepts", "find_toolchain", "require_space"]

_CMAKE_LEAST = (3, 14)  # cmake_minimum_required of llama.cpp's CMakeLists.txt; ggml-vulkan's asks for 3.19
_CMAKE_LEAST_VULKAN = (3, 19)
_PROBE_SECONDS = 30.0
# The server's largest files (server-context.cpp, httplib.cpp) took g++ 12 0.6 GiB each.
_JOB_BYTES = 1 << 30
_LEAST_BYTES = 3 << 28
# Source and build folder took 0.3 GiB. The figure for Vulkan, which adds generated shaders, is an estimate.
_SPACE_BYTES, _SPACE_VULKAN_BYTES = 1 << 30, 3 << 30

_PACKAGES: Mapping[str, Mapping[str, str]] = table_beside(__file__, "packages.toml")
_INSTALL = {
    "apt": "sudo apt install",
    "dnf": "sudo dnf install",
    "pacman": "sudo pacman -S",
    "zypper": "sudo zypper install",
    "apk": "sudo apk add",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """`compiler`, `cmake` and `glslc` are the version lines that they print; `generator` is CMake's build tool."""

    compiler: str
    cmake: str
    generator: str
    glslc: str = ""


def find_toolchain(*, vulkan: bool) -> Toolchain:
    """Raises UserError, which names all that is missing and the command that installs it, or what is too old."""
    missing = _missing(vulkan)
    if missing:
        problems = ", ".join(problem for _, problem in missing)
        raise UserError(f"cannot compile here: {problems}; {install_command([key for key, _ in missing])}")
    cmake = _first_line("cmake", "--version").removeprefix("cmake version ")
    least = _CMAKE_LEAST_VULKAN if vulkan else _CMAKE_LEAST
    if _version(cmake) < least:
        raise UserError(
            f"cmake {cmake} is too old: {least[0]}.{least[1]} or newer is needed; "
            "run: pipx install cmake, or: uv tool install cmake"
        )
    if vulkan:
        _require_vulkan_headers()
    return Toolchain(
        compiler=_first_line(_compiler() or "c++", "--version"),
        cmake=cmake,
        generator="Ninja" if shutil.which("ninja") else "Unix Makefiles",
        glslc=_first_line("glslc", "--version") if vulkan else "",
    )


def compiler_accepts(march: str) -> bool:
    """Whether the compiler knows these instructions. True where there is none: its absence is told later."""
    return _compiler() is None or _compiles("", f"-march={march}")


def install_command(keys: Sequence[str]) -> str:
    """ "run: sudo apt install g++ cmake", for this distribution; Debian's names where it is unknown."""
    installer = next((program for program in _INSTALL if shutil.which(program)), "")
    packages = " ".join(_PACKAGES[key][installer or "apt"] for key in keys)
    return (
        f"run: {_INSTALL[installer]} {packages}" if installer else f"install the packages that Debian names {packages}"
    )


def choose_jobs(jobs: int | None) -> int:
    """How many compilers to run at once: `jobs`, or one per usable CPU as far as the free memory goes. Raises UserError
    where there is not enough memory for one."""
    board = read_board()
    swap = max((board.swap_bytes or 0) - (board.swap_used_bytes or 0), 0)
    free = (board.memory_available_bytes or 0) + swap
    if board.memory_available_bytes is not None and free < _LEAST_BYTES:
        raise UserError(
            f"{format_bytes(free)} of memory are free and a compiler needs {format_bytes(_LEAST_BYTES)}; "
            "stop other programs, or add swap"
        )
    if jobs is not None:
        return jobs
    cpus = len(os.sched_getaffinity(0))
    cpus = min(cpus, board.limits.threads or cpus)
    return cpus if board.memory_available_bytes is None else max(min(cpus, free // _JOB_BYTES), 1)


def require_space(folder: Path, *, vulkan: bool) -> None:
    """Raises UserError when the disk is too full to compile in `folder`."""
    needed = _SPACE_VULKAN_BYTES if vulkan else _SPACE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"compiling needs {format_bytes(needed)} in {folder}, {format_bytes(free)} are free; "
            "free some or name another folder with TRILITHON_CACHE"
        )


def _missing(vulkan: bool) -> list[tuple[str, str]]:
    """Keys of `_PACKAGES`, each with the problem."""
    missing = []
    if _compiler() is None:
        missing.append(("compiler", "there is no C++ compiler"))
    elif not _compiles("#include <charconv>\n#include <filesystem>\n", "-std=c++17"):
        missing.append(("compiler", f"{_first_line(_compiler() or '', '--version')} knows no C++17"))
    if shutil.which("cmake") is None:
        missing.append(("cmake", "there is no cmake"))
    if shutil.which("ninja") is None and shutil.which("make") is None:
        missing.append(("ninja", "there is neither ninja nor make"))
    if vulkan and shutil.which("glslc") is None:
        missing.append(("glslc", "there is no glslc, which compiles Vulkan's shaders"))
    if vulkan and _compiler() is not None:
        if not _compiles("#include <vulkan/vulkan.hpp>\n", "-std=c++17"):
            missing.append(("vulkan", "there are no Vulkan headers"))
        if not _compiles("#include <spirv/unified1/spirv.hpp>\n"):
            missing.append(("spirv", "there are no SPIR-V headers"))
    return missing


def _require_vulkan_headers() -> None:
    """ggml-vulkan.cpp (llama.cpp 0c1e570) uses VK_EXT_layer_settings, which the headers have since 1.3.272: with
    those of Debian 12 (1.3.239) it does not compile."""
    if _compiles("#include <vulkan/vulkan_core.h>\n#ifndef VK_EXT_layer_settings\n#error too old\n#endif\n"):
        return
    raise UserError(
        "the Vulkan headers are too old: 1.3.272 or newer is needed (Debian 13, Ubuntu 24.04); take a newer system, or "
        "install Vulkan-Headers of Khronos into /usr/local"
    )


def _compiler() -> str | None:
    """The compiler that CMake chooses."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next((path for name in names if (path := shutil.which(name))), None)


def _compiles(code: str, *flags: str) -> bool:
    """Whether the compiler's preprocessor accepts `code`, with its include paths and those of $VULKAN_SDK."""
    sdk = os.environ.get("VULKAN_SDK")
    includes = [f"-I{sdk}/include"] if sdk else []
    with tempfile.TemporaryDirectory(prefix="trilithon-probe-") as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(code, encoding="ascii")
        command = [_compiler() or "c++", *flags, *includes, "-E", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    return done.returncode == 0


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL)
    lines = (done.stdout or done.stderr).decode(errors="replace").strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)

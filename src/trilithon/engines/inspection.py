"""Checks of a folder that the user names as a build, before it is registered."""

import os
import re
import signal
import subprocess
from pathlib import Path

from trilithon.engines.elf import elf_machine, foreign_machine
from trilithon.errors import UserError

__all__ = ["LIBRARY", "PROGRAM", "check_program", "find_build", "name_for"]

PROGRAM, LIBRARY = "llama-server", "librkllmrt.so"

# Where builds have their programs and libraries, below the folder that users name.
_PLACES = ("", "bin", "build/bin", "lib", "aarch64", "Linux/librkllm_api/aarch64")
_NOT_A_NAME = {"bin", "build", "lib", "lib64", "release", "debug", "aarch64", "linux", "librkllm_api", "usr", "local"}
_PROBE_SECONDS = 20.0


def find_build(path: Path) -> Path:
    """The folder with a build for this machine: `path`, one below it, or the one around it where `path` is the program
    itself. Raises UserError where there is none."""
    path = path.expanduser().absolute()
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder that has {PROGRAM} or {LIBRARY}")
    if path.name in (PROGRAM, LIBRARY) and path.is_file():
        path = path.parent
    for folder in (path / place for place in _PLACES):
        if (folder / PROGRAM).is_file():
            check_program(folder / PROGRAM)
            return folder.resolve()
        if (folder / LIBRARY).is_file():
            _check_library(folder / LIBRARY)
            return folder.resolve()
    raise UserError(f"{path} has neither {PROGRAM} nor {LIBRARY}; name the folder that has one")


def check_program(program: Path) -> str:
    """The output of `llama-server --version`. Raises UserError with the fix when it does not run here."""
    if not os.access(program, os.X_OK):
        raise UserError(f"{program} is not executable; run: chmod +x {program}")
    _require_this_machine(program)
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{program} --version did not end within {_PROBE_SECONDS:g} s; try it by hand, and add it when it does"
        ) from error
    except OSError as error:
        raise UserError(f"{program} does not run: {error.strerror}; take a build for this machine") from error
    output = (done.stderr + done.stdout).decode(errors="replace").strip()
    if done.returncode:
        raise UserError(f"{program} does not run: {_why(done.returncode, output)}")
    return output


def name_for(folder: Path) -> str:
    """The name of the build in `folder` where the user gives none: "rk-llama.cpp" for …/rk-llama.cpp/build/bin."""
    parts = [part for part in reversed(folder.parts[1:]) if part.lower() not in _NOT_A_NAME]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[0] if parts else "").strip("-._")
    return name[:40] or "added"


def _why(returncode: int, output: str) -> str:
    if returncode == -signal.SIGILL:
        return "it uses instructions that this CPU does not have; compile one here: trilithon engines build"
    missing = re.search(r"error while loading shared libraries: ([^:]+):", output)
    if missing:
        return f"the library {missing[1]} is missing; put it beside the program, or install the package that has it"
    if returncode < 0:
        return f"it was killed by {signal.Signals(-returncode).name}; take another build"
    last = output.splitlines()[-1][:200] if output else "no output"
    return f"exit code {returncode} ({last}); fix that, and add it again"


def _check_library(library: Path) -> None:
    if elf_machine(library) is None:
        raise UserError(f"{library} is not a library (no ELF header); download it again")
    _require_this_machine(library)


def _require_this_machine(path: Path) -> None:
    machine = foreign_machine(path)
    if machine:
        raise UserError(f"{path} was compiled for {machine}, this machine is {os.uname().machine}; use a build for it")

"""What a folder holds that a user names as a build: judged before it is registered."""

import os
import re
import signal
import subprocess
from pathlib import Path

from trilithon.engines.elf import elf_machine, foreign_machine
from trilithon.errors import UserError

__all__ = ["LIBRARY", "PROGRAM", "check_program", "find_build", "name_for"]

PROGRAM, LIBRARY = "llama-server", "librkllmrt.so"

# Where builds keep their programs and libraries below the folder that people name.
_PLACES = ("", "bin", "build/bin", "lib", "aarch64", "Linux/librkllm_api/aarch64")
_NOT_A_NAME = {"bin", "build", "lib", "lib64", "release", "debug", "aarch64", "linux", "librkllm_api", "usr", "local"}
_PROBE_SECONDS = 20.0


def find_build(path: Path) -> Path:
    """The folder at or below `path` (or around it, when it is the program itself) that holds a build which fits this
    machine. Raises UserError, saying why it is none."""
    path = path.expanduser().absolute()
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder that holds {PROGRAM} or {LIBRARY}")
    if path.name in (PROGRAM, LIBRARY) and path.is_file():
        path = path.parent
    for folder in (path / place for place in _PLACES):
        if (folder / PROGRAM).is_file():
            check_program(folder / PROGRAM)
            return folder.resolve()
        if (folder / LIBRARY).is_file():
            _check_library(folder / LIBRARY)
            return folder.resolve()
    raise UserError(f"{path} holds neither {PROGRAM} nor {LIBRARY}; name the folder that does")


def check_program(program: Path) -> str:
    """Run `llama-server --version`; what it says. Raises UserError with the fix when it does not run here."""
    if not os.access(program, os.X_OK):
        raise UserError(f"{program} may not be run; run: chmod +x {program}")
    _require_this_machine(program)
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{program} --version did not answer within {_PROBE_SECONDS:g} s; try it by hand, and add it once it does"
        ) from error
    except OSError as error:
        raise UserError(f"{program} does not run: {error.strerror}; take a build for this machine") from error
    said = (done.stderr + done.stdout).decode(errors="replace").strip()
    if done.returncode:
        raise UserError(f"{program} does not run: {_why(done.returncode, said)}")
    return said


def name_for(folder: Path) -> str:
    """What to call the build in `folder` when the user says nothing: "rk-llama.cpp" for …/rk-llama.cpp/build/bin."""
    parts = [part for part in reversed(folder.parts[1:]) if part.lower() not in _NOT_A_NAME]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[0] if parts else "").strip("-._")
    return name[:40] or "added"


def _why(returncode: int, said: str) -> str:
    if returncode == -signal.SIGILL:
        return "it uses instructions that this CPU lacks; compile one for it: trilithon engines build"
    missing = re.search(r"error while loading shared libraries: ([^:]+):", said)
    if missing:
        return f"the library {missing[1]} is missing; keep it beside the program, or install the package that has it"
    if returncode < 0:
        return f"it was ended by {signal.Signals(-returncode).name}; take another build"
    last = said.splitlines()[-1][:200] if said else "it said nothing"
    return f"exit code {returncode} ({last}); fix that, and add it again"


def _check_library(library: Path) -> None:
    if elf_machine(library) is None:
        raise UserError(f"{library} is no library (no ELF header); download it again")
    _require_this_machine(library)


def _require_this_machine(path: Path) -> None:
    machine = foreign_machine(path)
    if machine:
        raise UserError(f"{path} is made for {machine}, and this machine is {os.uname().machine}; take the one for it")

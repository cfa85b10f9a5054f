"""Shared libraries that a program or library needs and this system lacks, with the packages that have them."""

import re
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path

from trilithon.engines.causes import CAUSES_FILE, read_causes

__all__ = ["missing_libraries"]

_SECONDS = 10.0
# glibc's ldd, and musl's.
_NOT_FOUND = re.compile(r"^\s*(\S+) => not found|Error loading shared library ([^\s:]+):", re.MULTILINE)


@cache
def missing_libraries(file: Path) -> str:
    """What is missing and, after "; run: ", how it is installed, where that is known. Empty where nothing is, or where
    the system has no ldd to tell. Cached: a library that is installed is seen by the next process."""
    try:
        done = subprocess.run(["ldd", file], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = dict.fromkeys(glibc or musl for glibc, musl in _NOT_FOUND.findall(done.stdout + done.stderr))
    if not names:
        return ""
    known = read_causes(files(__package__) / CAUSES_FILE).packages
    packages = dict.fromkeys(known[name] for name in names if name in known)
    fix = f"; run: sudo apt install {' '.join(packages)}" if packages else ""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing{fix}"

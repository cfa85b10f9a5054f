"""The llama-server programs of this machine, whichever engine they belong to: where they are, what they say of
themselves, and what they can compute on. The engines' modules pick theirs."""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trilithon.engines.base import Device
from trilithon.engines.registry import registered
from trilithon.settings import Configuration

__all__ = ["Program", "programs"]

_PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One `llama-server`. `name` is its registered name, or empty; `libraries` are the file names beside it, by which
    forks are told apart; `fingerprint` tells compilations of one commit apart."""

    path: Path
    name: str
    version: str
    fingerprint: str
    libraries: frozenset[str]
    devices: tuple[Device, ...]


def programs(configuration: Configuration) -> list[Program]:
    """Each program once: the registered ones, the folders of the settings, PATH."""
    named = {(entry.folder / "llama-server").resolve(): entry.name for entry in registered(configuration)}
    on_path = shutil.which("llama-server")
    found = [
        *named,
        *((folder / "llama-server").resolve() for folder in configuration.builds),
        *([Path(on_path).resolve()] if on_path else []),
    ]
    return [_program(p, named.get(p, "")) for p in dict.fromkeys(found) if p.is_file() and os.access(p, os.X_OK)]


def _program(path: Path, name: str) -> Program:
    fingerprint = _fingerprint(path)
    return Program(
        path=path,
        name=name,
        version=_version(path, fingerprint),
        fingerprint=fingerprint,
        libraries=frozenset(file.name for file in path.parent.glob("*.so*")),
        devices=_devices(path, fingerprint),
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


@cache
def _devices(program: Path, fingerprint: str) -> tuple[Device, ...]:
    return ()


def _said(program: Path, word: str) -> str:
    done = subprocess.run(
        [program, word], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    return (done.stderr + done.stdout).decode(errors="replace")

"""Shared libraries: where the dynamic loader would find one, and which NPU runtimes lie there, told by their bytes.

Nothing is loaded: a vendor library may crash the process, or talk to its driver as soon as it is opened."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trilithon.board.sysfs import Machine

__all__ = [
    "KNOWN_RKLLM_VERSIONS",
    "RKLLM",
    "NpuRuntime",
    "environment",
    "find_library",
    "find_runtimes",
    "followed_release",
    "own_paths",
    "parse_version",
    "stated_version",
]

RKLLM = "librkllmrt.so"
# The releases whose header is known: structures changed between them without a change of the library's name.
KNOWN_RKLLM_VERSIONS = frozenset({"1.1.4", "1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.3.0"})

_PATCH_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)")

_BASES = ("/usr/local/lib", "/lib", "/usr/lib", "/usr/lib64")
_MARKERS = {RKLLM: b"RKLLM SDK (version: ", "librknnrt.so": b"librknnrt version: "}
_VERSION = re.compile(r"\d[\w.+-]{0,30}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuRuntime:
    """An NPU runtime: `library` is its file's name; `version` what it calls itself, None where it does not say."""

    library: str
    path: str
    version: str | None


def find_runtimes(machine: Machine) -> tuple[NpuRuntime, ...]:
    """Every copy of librkllmrt.so and librknnrt.so, of each the one first that the loader takes."""
    return tuple(
        NpuRuntime(library=library, path=path, version=stated_version(machine, path, library))
        for library in _MARKERS
        for path in _copies(machine, library)
    )


def find_library(machine: Machine, name: str) -> str | None:
    return next(_copies(machine, name), None)


def own_paths(text: str) -> list[str]:
    """The absolute paths in a list such as LD_LIBRARY_PATH."""
    return [path for path in text.split(":") if path.startswith("/") and path.isprintable()]


def environment(machine: Machine) -> dict[str, str]:
    """What this process was started with: the loader takes LD_LIBRARY_PATH from there, too."""
    pairs = (entry.partition("=") for entry in machine.strings("/proc/self/environ") or ())
    return {name: value for name, separator, value in pairs if separator}


def parse_version(text: str | None) -> tuple[int, ...]:
    """ "25.0.7" as (25, 0, 7), to be compared; empty for what is no version."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", text or "", re.ASCII)[:4])


def followed_release(version: str | None) -> str | None:
    """The known RKLLM release whose interface is used for this one: itself, or for a later patch release the newest of
    its minor series; None where there is none."""
    if version in KNOWN_RKLLM_VERSIONS:
        return version
    patch = _PATCH_RELEASE.match(version or "")
    series = [
        known for known in KNOWN_RKLLM_VERSIONS if patch and parse_version(known)[:2] == parse_version(patch[0])[:2]
    ]
    newest = max(series, key=parse_version, default=None)
    return newest if newest and patch and parse_version(newest) < parse_version(patch[0]) else None


def _copies(machine: Machine, name: str) -> Iterator[str]:
    seen = set()
    for folder in _folders(machine):
        path = f"{folder.rstrip('/')}/{name}"
        identity = machine.identity(path)  # /lib is a link to /usr/lib on most systems
        if identity is not None and identity not in seen:
            seen.add(identity)
            yield path


def _folders(machine: Machine) -> Iterator[str]:
    yield from own_paths(environment(machine).get("LD_LIBRARY_PATH", ""))
    for base in _BASES:
        yield base
        yield from machine.glob(f"{base}/*-linux-gnu*")  # Debian's, one per architecture


def stated_version(machine: Machine, path: str, library: str) -> str | None:
    """What a copy of `library` (librkllmrt.so or librknnrt.so) calls itself; None where it does not say."""
    matches = (_VERSION.match(text) for text in machine.texts_after(path, _MARKERS[library]))
    return next((match[0].rstrip(".+-") for match in matches if match), None)

"""Vulkan drivers that are installed, and which of them can serve the GPU that is here: told from their manifests and
libraries, without loading one.

The Vulkan loader takes whatever answers, so where no driver serves the GPU a software device is what programs get."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from trilithon.board.libraries import environment, find_library, own_paths, parse_version
from trilithon.board.sysfs import Machine
from trilithon.tables import table_beside

__all__ = ["VulkanDriver", "read_vulkan"]

# Where the loader looks, in its order (LoaderDriverInterface.md of the Vulkan-Loader); "~" is $HOME.
_FOLDERS = ("~/.config", "/etc/xdg", "/etc", "~/.local/share", "/usr/local/share", "/usr/share")
# The beginning of a library's name to the driver's, and to the kernel drivers that it works on. Sources: the drivers'
# own checks in Mesa; Arm's library for kbase. Software has no kernel driver.
_KINDS: Mapping[str, tuple[str, frozenset[str]]] = {
    start: (name, frozenset(kernel_drivers))
    for start, (name, *kernel_drivers) in table_beside(__file__, "vulkan.toml").items()
}
# PanVK shows a Mali-G610 (panthor) by itself since Mesa 25.0; a Mali-G52 (panfrost), and any GPU before, only under
# this variable (panvk_physical_device.c; "panvk is not well-tested on v7").
_PANVK_VARIABLE = "PAN_I_WANT_A_BROKEN_VULKAN_DRIVER"
_PANVK_SINCE = (25, 0)
_MESA_VERSION = re.compile(r"(2\d|1\d)\.\d{1,2}\.\d{1,2}", re.ASCII)
_PACKAGE_VERSION = re.compile(r"^Version: (?:\d+:)?(\d{2}\.\d{1,2}\.\d{1,2})", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class VulkanDriver:
    """`library` is None where the manifest names one that is not there. `version` is Mesa's, None for other drivers.
    `software`: it runs on the CPU. `serves`: it can show a GPU that is here, as far as files tell."""

    name: str
    manifest: str
    library: str | None
    version: str | None
    software: bool
    serves: bool


def read_vulkan(machine: Machine, kernel_drivers: Iterable[str]) -> tuple[VulkanDriver, ...]:
    """`kernel_drivers` are those of the GPUs that are here."""
    variables = environment(machine)
    present = frozenset(kernel_drivers)
    packaged: list[str | None] = []  # asked at most once: the database has a few megabytes
    drivers = []
    for manifest in _manifests(machine, variables):
        named = machine.parsed(manifest, _library_path)
        if named is None:
            continue
        name, works_on = _kind(named)
        library = _resolved(machine, manifest, named)
        software = name is not None and not works_on
        relevant = library is not None and (software or works_on & present)
        version = _mesa_version(machine, library, packaged) if library and relevant else None
        serves = bool(relevant) and not software and _shows(name, works_on & present, version, variables)
        label = name or PurePosixPath(named).name
        drivers.append(
            VulkanDriver(
                name=label, manifest=manifest, library=library, version=version, software=software, serves=serves
            )
        )
    return tuple(drivers)


def _manifests(machine: Machine, variables: Mapping[str, str]) -> Iterator[str]:
    """The files that the loader would read: VK_DRIVER_FILES, or VK_ICD_FILENAMES, stand in place of its folders."""
    chosen = variables.get("VK_DRIVER_FILES") or variables.get("VK_ICD_FILENAMES")
    if chosen:
        yield from own_paths(chosen)
        return
    yield from own_paths(variables.get("VK_ADD_DRIVER_FILES", ""))
    home = variables.get("HOME", "")
    for folder in _FOLDERS:
        if folder.startswith("~") and not home.startswith("/"):
            continue
        base = folder.replace("~", _literal(home), 1)
        yield from (path for path in machine.glob(f"{base}/vulkan/icd.d/*.json") if path.isprintable())


def _literal(path: str) -> str:
    """The path as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _library_path(text: str) -> str:
    """Raises ValueError for what is no manifest, or one of a 32-bit library."""
    try:
        driver = json.loads(text)["ICD"]
        path, bits = driver["library_path"], driver.get("library_arch", "64")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a manifest") from error
    if not isinstance(path, str) or not path or not path.isprintable() or bits != "64":
        raise ValueError("not a manifest of a 64-bit library")
    return path


def _kind(library: str) -> tuple[str | None, frozenset[str]]:
    """The driver's name and kernel drivers; None for one that is not known, which is taken for no software."""
    name = PurePosixPath(library).name
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), (None, frozenset()))


def _resolved(machine: Machine, manifest: str, library: str) -> str | None:
    """A bare name is for the dynamic loader; a path with a slash in it starts at the manifest's folder."""
    if "/" not in library:
        return find_library(machine, library)
    path = str(PurePosixPath(manifest).parent / library)
    return path if machine.exists(path) else None


def _mesa_version(machine: Machine, library: str, packaged: list[str | None]) -> str | None:
    """From the library's text; a compiler may have taken that apart, then from Debian's list of packages."""
    matches = (_MESA_VERSION.match(text) for text in machine.texts_after(library, b"Mesa "))
    own = next((match[0] for match in matches if match), None)
    if own or not PurePosixPath(library).name.startswith("libvulkan_"):
        return own
    if not packaged:
        texts = machine.texts_after("/var/lib/dpkg/status", b"\nPackage: mesa-vulkan-drivers\n", length=1024)
        text_matches = (_PACKAGE_VERSION.search(text) for text in texts)
        packaged.append(next((match[1] for match in text_matches if match), None))
    return packaged[0]


def _shows(name: str | None, kernel: frozenset[str], version: str | None, variables: Mapping[str, str]) -> bool:
    if name != "PanVK" or variables.get(_PANVK_VARIABLE):
        return True
    return "panthor" in kernel and (version is None or parse_version(version) >= _PANVK_SINCE)

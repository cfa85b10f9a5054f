"""What a `llama-server` can compute on besides the CPU: asked of the program itself, in a child, since that loads GPU
drivers, which may crash or hang; and remembered, since it is asked for often."""

import hashlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from signal import Signals
from typing import Any

from trilithon.board.accelerators import gpu_drivers
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.board.vulkan import read_vulkan
from trilithon.engines.base import Device, Unit
from trilithon.errors import UserError
from trilithon.files import JsonStore

__all__ = ["VISIBLE_DEVICES", "Inventory", "inventory", "parse_devices"]

VISIBLE_DEVICES = "GGML_VK_VISIBLE_DEVICES"
"""Without it llama.cpp shows GPUs alone; with it, Vulkan devices by number, software too (ggml-vulkan.cpp)."""

_PROBE_SECONDS = 10.0
_KILL_SECONDS = 2.0
_MOST_DEVICES = 16
# Trouble may be over (a library installed, a busy machine idle): it is looked at again after this many times as long as
# it took to find, a hang after three hours. What was found is forgotten only when its key is.
_TROUBLE_TIMES = 1000
_LINE = re.compile(r"\s+([A-Za-z]+\d*): (.+) \((\d+) MiB, \d+ MiB free\)")
# The beginnings of llama.cpp's names for devices; others (RPC, BLAS) are no units of this machine.
_UNITS: Mapping[str, Unit] = {
    "Vulkan": "gpu",
    "CUDA": "gpu",
    "ROCm": "gpu",
    "MUSA": "gpu",
    "SYCL": "gpu",
    "GPUOpenCL": "gpu",
    "RKNPU": "npu",
    "Rocket": "npu",
}
_SOFTWARE = ("llvmpipe", "softpipe", "swiftshader", "lavapipe")
# What would change the program's answer.
_HIDDEN = ("LLAMA_ARG_", "GGML_VK_")
# Where the Vulkan loader looks for drivers (LoaderDriverInterface.md of the Vulkan-Loader), and what turns it.
_MANIFESTS = ("/etc/xdg", "/etc", "/usr/local/share", "/usr/share")
_OWN_MANIFESTS = (".config", ".local/share")
_LOADER_VARIABLES = (
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_ADD_DRIVER_FILES",
    "VK_LOADER_DRIVERS_SELECT",
    "VK_LOADER_DRIVERS_DISABLE",
    "PAN_I_WANT_A_BROKEN_VULKAN_DRIVER",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """`trouble` is what went wrong on asking, or empty."""

    devices: tuple[Device, ...] = ()
    trouble: str = ""


def inventory(program: Path, fingerprint: str, cache: Path) -> Inventory:
    """From `cache`, while neither the program nor the drivers nor the kernel changed; else asked now, for at most some
    ten seconds."""
    key = repr((str(program), fingerprint, *_surroundings()))
    file = cache / "devices" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    store = JsonStore(path=file, parse=_recalled, fix="remove it")
    known = None
    with suppress(UserError):  # a cache that cannot be read is no cache; the program is asked again
        known = store.read()
    if known is None:
        began = time.monotonic()
        known = _asked(program)
        with suppress(UserError):  # a cache that is read-only or full costs time, never the answer
            store.write(asdict(known) | {"asked": time.time(), "seconds": time.monotonic() - began})
    return known


def parse_devices(text: str) -> list[Device]:
    """What `llama-server --list-devices` prints: "  Vulkan0: Mali-G610 (7800 MiB, 7800 MiB free)"."""
    devices = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        unit = _UNITS.get(match[1].rstrip("0123456789")) if match else None
        if match and unit:
            name, mebibytes = match[2], int(match[3])
            devices.append(
                Device(
                    id=match[1],
                    unit=unit,
                    name=name,
                    software=name.lower().startswith(_SOFTWARE),
                    memory_bytes=mebibytes << 20 if mebibytes else None,
                )
            )
    return devices


def _asked(program: Path) -> Inventory:
    try:
        shown = _listed(program)
        return Inventory(devices=(*_others(shown), *_vulkan(program, shown)))
    except subprocess.TimeoutExpired:
        return Inventory(trouble=f"--list-devices gave no answer within {_PROBE_SECONDS:g} s")
    except OSError as error:
        return Inventory(trouble=f"cannot be started: {error.strerror}")
    except _Failed as error:
        return Inventory(trouble=str(error))


def _others(shown: list[Device]) -> Iterator[Device]:
    return (device for device in shown if not device.id.startswith("Vulkan"))


def _vulkan(program: Path, shown: list[Device]) -> Iterator[Device]:
    """Every Vulkan device, by the loader's number: that is llama.cpp's own too, since the loader puts GPUs first. Those
    that llama.cpp leaves out by itself (software, a second driver of one GPU) count as software: to be named only."""
    own = Counter(device.name for device in shown if device.id.startswith("Vulkan"))
    for number in range(_MOST_DEVICES):
        try:
            found = [d for d in _listed(program, {VISIBLE_DEVICES: str(number)}) if d.id.startswith("Vulkan")]
        except _Failed:  # a number too high is the end of some builds
            return
        if not found:
            return
        device = found[0]
        software = device.software or not own[device.name]
        own[device.name] -= 1
        yield Device(
            id=f"Vulkan{number}",
            unit="gpu",
            name=device.name,
            driver=_driver(software=device.software),
            software=software,
            memory_bytes=device.memory_bytes,
        )


def _driver(*, software: bool) -> str:
    """Name and version of the installed Vulkan drivers that could show such a device."""
    drivers = read_vulkan(THIS_MACHINE, gpu_drivers(THIS_MACHINE).values())
    fitting = [d for d in drivers if d.library and (d.software if software else d.serves)]
    return ", ".join(sorted({f"{d.name} {d.version or ''}".strip() for d in fitting}))


class _Failed(Exception):
    """It ran, and ended badly."""


def _listed(program: Path, variables: Mapping[str, str] | None = None) -> list[Device]:
    """Raises OSError, TimeoutExpired and _Failed."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_HIDDEN)}
    child = subprocess.Popen(
        [program, "--list-devices"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | dict(variables or {}),
    )
    try:
        told, complained = child.communicate(timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold it in the kernel for ever
            child.communicate(timeout=_KILL_SECONDS)
        raise
    if child.returncode < 0:
        raise _Failed(f"--list-devices was ended by {Signals(-child.returncode).name}")
    # One that is too old to know the word is nothing wrong, but no GPU of it can be named either.
    if child.returncode and b"invalid argument" not in complained:
        raise _Failed(f"--list-devices ended with exit code {child.returncode}")
    return parse_devices(told.decode(errors="replace"))


def _surroundings() -> tuple[object, ...]:
    """What may change the answer: drivers that come, go or change, a GPU that may now be opened, another kernel."""
    home = Path.home()
    folders = [Path(name) for name in _MANIFESTS] + [home / name for name in _OWN_MANIFESTS]
    files = sorted(path for folder in folders for path in folder.glob("vulkan/icd.d/*.json"))
    manifests = [(str(path), path.stat().st_mtime_ns) for path in files if path.exists()]
    libraries = _libraries(tuple(manifests))
    nodes = [(path, THIS_MACHINE.usable(path)) for path in THIS_MACHINE.glob("/dev/dri/renderD*")]
    variables = [os.environ.get(name) for name in _LOADER_VARIABLES]
    return manifests, libraries, nodes, variables, os.uname().release


@cache
def _libraries(manifests: tuple[tuple[str, int], ...]) -> list[tuple[str, str | None, int]]:
    """The drivers that they lead to, and when those were last changed: people replace libmali by hand."""
    drivers = read_vulkan(THIS_MACHINE, gpu_drivers(THIS_MACHINE).values())
    return [(d.library, d.version, Path(d.library).stat().st_mtime_ns) for d in drivers if d.library]


def _recalled(kept: Any) -> Inventory | None:
    found = Inventory(devices=tuple(Device(**device) for device in kept["devices"]), trouble=kept["trouble"])
    age, patience = time.time() - kept["asked"], kept["seconds"] * _TROUBLE_TIMES
    return None if found.trouble and not 0 <= age < patience else found

"""The devices of a `llama-server`. The program itself lists them, in a child process: it loads GPU drivers, which may
crash or hang. The list is cached, because it is needed often."""

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
"""Without it llama.cpp lists GPUs only; with it, Vulkan devices by number, with software (ggml-vulkan.cpp)."""

_PROBE_SECONDS = 10.0
_KILL_SECONDS = 2.0
_MOST_DEVICES = 16
# A problem may go away (a library is installed, a busy machine becomes idle): the program is asked again after this
# many times as long as it took to fail, after a hang in three hours. Devices are cached while their key is the same.
_TROUBLE_TIMES = 1000
_LINE = re.compile(r"\s+([A-Za-z]+\d*): (.+) \((\d+) MiB, \d+ MiB free\)")
# The beginnings of llama.cpp's names for devices; others (RPC, BLAS) are not units of this machine.
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
# Variables that would change the list.
_HIDDEN = ("LLAMA_ARG_", "GGML_VK_")
# Where the Vulkan loader looks for drivers, and variables for it (LoaderDriverInterface.md of the Vulkan-Loader).
_MANIFESTS = ("/etc/xdg", "/etc", "/usr/local/share", "/usr/share")
_HOME_MANIFESTS = (".config", ".local/share")
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
    """`trouble` is why the devices are not known, or empty."""

    devices: tuple[Device, ...] = ()
    trouble: str = ""


def inventory(program: Path, fingerprint: str, cache: Path) -> Inventory:
    """From `cache` while the program, the drivers and the kernel are the same; otherwise from the program, which takes
    up to some ten seconds."""
    key = repr((str(program), fingerprint, *_surroundings()))
    file = cache / "devices" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    store = JsonStore(path=file, parse=_from_cache, fix="remove it")
    cached = None
    with suppress(UserError):  # without a readable cache the program is asked again
        cached = store.read()
    if cached is not None:
        return cached
    started = time.monotonic()
    listed = _list_all(program)
    with suppress(UserError):  # a cache that is read-only or full costs time only
        store.write(asdict(listed) | {"asked": time.time(), "seconds": time.monotonic() - started})
    return listed


def parse_devices(text: str) -> list[Device]:
    """Parses the output of `llama-server --list-devices`: "  Vulkan0: Mali-G610 (7800 MiB, 7800 MiB free)"."""
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


def _list_all(program: Path) -> Inventory:
    try:
        default = _list_devices(program)
        others = [device for device in default if not device.id.startswith("Vulkan")]
        return Inventory(devices=(*others, *_vulkan(program, default)))
    except subprocess.TimeoutExpired:
        return Inventory(trouble=f"--list-devices did not end within {_PROBE_SECONDS:g} s")
    except OSError as error:
        return Inventory(trouble=f"cannot be started: {error.strerror}")
    except _ListingFailed as error:
        return Inventory(trouble=str(error))


def _vulkan(program: Path, default: list[Device]) -> Iterator[Device]:
    """Every Vulkan device by the loader's number, which is llama.cpp's number too, since the loader lists GPUs first.
    Those that llama.cpp does not list by default (software, a second driver of a GPU) count as software: they are used
    only where the user names them."""
    by_default = Counter(device.name for device in default if device.id.startswith("Vulkan"))
    for number in range(_MOST_DEVICES):
        try:
            visible = _list_devices(program, {VISIBLE_DEVICES: str(number)})
        except _ListingFailed:  # some builds fail for a number that is too high
            return
        device = next((device for device in visible if device.id.startswith("Vulkan")), None)
        if device is None:
            return
        software = device.software or not by_default[device.name]
        by_default[device.name] -= 1
        yield Device(
            id=f"Vulkan{number}",
            unit="gpu",
            name=device.name,
            driver=_driver(software=device.software),
            software=software,
            memory_bytes=device.memory_bytes,
        )


def _driver(*, software: bool) -> str:
    """Name and version of the installed Vulkan drivers that could provide such a device."""
    drivers = read_vulkan(THIS_MACHINE, gpu_drivers(THIS_MACHINE).values())
    fitting = [driver for driver in drivers if driver.library and (driver.software if software else driver.serves)]
    return ", ".join(sorted({f"{driver.name} {driver.version or ''}".strip() for driver in fitting}))


class _ListingFailed(Exception):
    """The program was killed, or ended with an error."""


def _list_devices(program: Path, variables: Mapping[str, str] | None = None) -> list[Device]:
    """Raises OSError, TimeoutExpired and _ListingFailed."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_HIDDEN)}
    child = subprocess.Popen(
        [program, "--list-devices"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | dict(variables or {}),
    )
    try:
        output, errors = child.communicate(timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # it may hang in a driver, where no signal ends it
            child.communicate(timeout=_KILL_SECONDS)
        raise
    if child.returncode < 0:
        raise _ListingFailed(f"--list-devices was killed by {Signals(-child.returncode).name}")
    # A build that is too old for --list-devices is not a problem, but has no devices that can be named.
    if child.returncode and b"invalid argument" not in errors:
        raise _ListingFailed(f"--list-devices ended with exit code {child.returncode}")
    return parse_devices(output.decode(errors="replace"))


def _surroundings() -> tuple[object, ...]:
    """All that may change the list: drivers, whether GPUs may be opened, variables, the kernel."""
    home = Path.home()
    folders = [Path(name) for name in _MANIFESTS] + [home / name for name in _HOME_MANIFESTS]
    files = sorted(path for folder in folders for path in folder.glob("vulkan/icd.d/*.json"))
    manifests = [(str(path), path.stat().st_mtime_ns) for path in files if path.exists()]
    libraries = _libraries(tuple(manifests))
    nodes = [(path, THIS_MACHINE.usable(path)) for path in THIS_MACHINE.glob("/dev/dri/renderD*")]
    variables = [os.environ.get(name) for name in _LOADER_VARIABLES]
    return manifests, libraries, nodes, variables, os.uname().release


@cache
def _libraries(manifests: tuple[tuple[str, int], ...]) -> list[tuple[str, str | None, int]]:
    """The drivers that the manifests name, and when they were last changed: users replace libmali by hand."""
    drivers = read_vulkan(THIS_MACHINE, gpu_drivers(THIS_MACHINE).values())
    return [
        (driver.library, driver.version, Path(driver.library).stat().st_mtime_ns)
        for driver in drivers
        if driver.library
    ]


def _from_cache(content: Any) -> Inventory | None:
    """None for a problem after which the program is to be asked again."""
    cached = Inventory(devices=tuple(Device(**device) for device in content["devices"]), trouble=content["trouble"])
    age, least_age = time.time() - content["asked"], content["seconds"] * _TROUBLE_TIMES
    return None if cached.trouble and not 0 <= age < least_age else cached

"""Which program contains this process, what it hides, and how its limits are lifted.

A container is known by its marks, and without marks by its masked paths: since cgroup namespaces, a pod's own files do
not name its runtime."""

import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

from trilithon.board.limits.cgroups import cgroup_paths
from trilithon.board.storage import mounts
from trilithon.board.sysfs import Machine
from trilithon.language import Message
from trilithon.tables import table_beside

__all__ = ["Remedy", "confined_by", "device_tree_hidden", "device_tree_mask", "read_container", "remedy"]

Remedy = Literal["device_tree", "devices", "memory", "quota", "cpus"]

# Only these mounts tell of this process: a host's own list has the file systems of its containers as well.
_POINTS = {"/", "/data", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}
_MASKS = ("/proc/device-tree", "/sys/firmware/devicetree/base", "/sys/firmware/devicetree", "/sys/firmware")
# Masked by every runtime of the Open Container Initiative, and by some settings of systemd units.
_MASKED = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}


@cache
def _table() -> dict[str, dict[str, Any]]:
    return table_beside(__file__, "container.toml")


def read_container(machine: Machine) -> str:
    """A key of container.toml; "" where this is no container."""
    # A virtual machine made from a container's image keeps the marks, but shows the kernel's own threads.
    if machine.text("/proc/2/comm") == "kthreadd":
        return ""
    marked = [kind for kind, marks in _table().items() if any(_marks(machine, marks))]
    if {"podman", "kubernetes"} <= set(marked) and "k3s" not in marked:
        return "cri-o"
    if marked:
        return marked[0]
    named = machine.text("/run/systemd/container") or _environment(machine).get("container", "")
    if named:
        return named if named in _table() else next((kind for kind in ("lxc",) if named.startswith(kind)), "other")
    points = {mount.point: mount.kind for mount in mounts(machine)}
    return "other" if points.get("/") in ("overlay", "fuse.fuse-overlayfs") and _MASKED & points.keys() else ""


def _marks(machine: Machine, marks: dict[str, Any]) -> Iterator[bool]:
    paths = [path for process in ("1", "self") for path in cgroup_paths(machine, process).values()]
    yield from (mark in path for mark in marks.get("cgroup", ()) for path in paths)
    environment = _environment(machine)
    for mark in marks.get("environment", ()):
        name, separator, value = mark.partition("=")
        yield environment.get(name) == value if separator else name in environment
    yield from (machine.exists(path) for path in marks.get("files", ()))
    sources = [f"{mount.root} {mount.source} {mount.options}" for mount in mounts(machine) if mount.point in _POINTS]
    yield from (mark in source for mark in marks.get("mounts", ()) for source in sources)


def _environment(machine: Machine) -> dict[str, str]:
    """Of this process, and of the first one, whose environment other users may not read."""
    texts = (machine.strings(f"/proc/{process}/environ") or () for process in ("1", "self"))
    return dict(text.split("=", 1) for part in texts for text in part if "=" in text)


def device_tree_hidden(machine: Machine) -> bool:
    """A server without device tree has DMI tables in its place; a board has nothing else that says its name."""
    return not machine.strings("/proc/device-tree/compatible") and not machine.exists("/sys/class/dmi/id")


def device_tree_mask(machine: Machine) -> str:
    """What covers it: "/sys/firmware is masked", or "" where that is not to be seen."""
    seen = {mount.point: mount.options for mount in mounts(machine)}
    if "subset=pid" in seen.get("/proc", "").split(","):
        return Message("/proc is mounted with subset=pid")
    return next((Message("{path} is masked", path=path) for path in _MASKS if path in seen), "")


def confined_by(machine: Machine, container: str, source: str = "") -> str:
    """Who set the limits, as a phrase: "the Docker container", "the systemd unit trilithon.service"."""
    path = _path(machine, source)
    return Message(_table()[_kind(container, path)]["name"], unit=_unit(path))


def remedy(machine: Machine, container: str, what: Remedy, source: str = "") -> str:
    """The command that lifts the limit that the file `source` sets; without one, what hides a part of the machine."""
    path = _path(machine, source)
    kind, unit = _kind(container, path), _unit(path)
    text = str(_table()[kind][what])
    if kind == container:
        return Message(text)
    user = "/user@" in path and not unit.startswith("user@")
    return Message(
        text,
        unit=shlex.quote(unit),
        systemctl="systemctl --user" if user else "sudo systemctl",
        source=shlex.quote(source),
        none="-1" if source.endswith(("_us", "_bytes")) else "max",
    )


def _path(machine: Machine, source: str) -> str:
    """Of the cgroup that is meant: that of `source`, or this process's."""
    if source:
        return str(PurePosixPath(source).parent)
    paths = cgroup_paths(machine)
    return max(paths.get("", ""), paths.get("name=systemd", ""), key=len)


def _kind(container: str, path: str) -> str:
    """A service within a container has its own limits; scopes and slices are how the runtimes make theirs."""
    unit = _unit(path)
    if container and not unit.endswith(".service"):
        return container
    return "service" if unit else "cgroup"


def _unit(path: str) -> str:
    """The unit of systemd that a cgroup belongs to; "" where there is none."""
    name = PurePosixPath(path).name
    return name if name.endswith((".service", ".slice", ".scope")) else ""

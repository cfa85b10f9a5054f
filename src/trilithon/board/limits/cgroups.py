"""What a container, a pod or a service may use: the limits of this process's cgroups and of all their parents.

cgroup v2 and v1, also both at once (hybrid). The files are those of cgroups(7) and of the kernel's documents
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trilithon.board.storage import mounts
from trilithon.board.sysfs import Machine, parse_count, parse_cpu_list, parse_kibibytes

__all__ = ["Limits", "cgroup_paths", "read_limits"]

# Without limit, v1 shows the largest multiple of the page size below 2^63, which differs by page size.
_NO_LIMIT_BYTES = 1 << 60
_PERIOD_MICROSECONDS = 100_000  # the kernel's default
# Where systemd and the container runtimes mount them, for a machine whose mounts are not to be read.
_V2_MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_V1_MOUNTS = {
    "cpu": ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"),
    "cpuset": ("/sys/fs/cgroup/cpuset",),
    "memory": ("/sys/fs/cgroup/memory",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The tightest limits; each None where there is none. The sources are the files that set them.

    `cpu_quota` is CPU time per time: 1.5 for one and a half CPUs. `cpus` are those that this process may run on, by its
    affinity and its `cpuset`, which is that of the cgroups alone.
    `memory_bytes` is the smallest limit, `memory_available_bytes` what the fullest cgroup still allows, its file cache
    counted as free: the kernel drops that first, and MemAvailable counts it too. `swap_bytes` and `swap_used_bytes`
    are of the cgroup that may swap least. `address_space_bytes` is the limit of each single process."""

    cpu_quota: float | None = None
    cpu_source: str = ""
    cpus: tuple[int, ...] | None = None
    cpuset: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    memory_source: str = ""
    memory_available_bytes: int | None = None
    swap_bytes: int | None = None
    swap_used_bytes: int | None = None
    address_space_bytes: int | None = None

    @property
    def threads(self) -> int | None:
        """How many threads the quota keeps busy: rounded down, since the kernel stops all threads of a cgroup that
        has used up its time, and at least one."""
        return None if self.cpu_quota is None else max(int(self.cpu_quota), 1)


@dataclass(frozen=True, slots=True)
class _MemoryLevel:
    """Of one cgroup. `free_bytes` is what is left below the limit."""

    source: str
    limit_bytes: int
    free_bytes: int


def read_limits(machine: Machine) -> Limits:
    """Memory limits above what the machine has are none."""
    unified, cpu, cpuset, memory = (_folders(machine, name) for name in ("", "cpu", "cpuset", "memory"))
    quotas = [*_quotas_v2(machine, unified), *_quotas_v1(machine, cpu)]
    quota, cpu_source = min(quotas, default=(None, ""))
    total = parse_kibibytes(machine.fields("/proc/meminfo").get("MemTotal"))
    levels = [
        level
        for level in (*_memory_v2(machine, unified), *_memory_v1(machine, memory))
        if total is None or level.limit_bytes <= total
    ]
    tightest = min(levels, key=lambda level: level.limit_bytes, default=None)
    status = re.search(r"^Cpus_allowed_list:\s*(\S+)$", machine.text("/proc/self/status") or "", re.MULTILINE)
    affinity, allowed = _list(status[1]) if status else None, _common(_cpusets(machine, unified, cpuset))
    swaps = [*_swap_v2(machine, unified), *_swap_v1(machine, memory)]
    swap, swap_used = min(swaps, key=lambda pair: pair[0], default=(None, None))
    space = re.search(r"^Max address space\s+(\d{1,19})\s", machine.text("/proc/self/limits") or "", re.MULTILINE)
    return Limits(
        cpu_quota=quota,
        cpu_source=cpu_source,
        cpus=_common((affinity, allowed)),
        cpuset=allowed,
        memory_bytes=tightest.limit_bytes if tightest else None,
        memory_source=tightest.source if tightest else "",
        memory_available_bytes=min((level.free_bytes for level in levels), default=None),
        swap_bytes=swap,
        swap_used_bytes=swap_used,
        address_space_bytes=_limit(parse_count(space[1])) if space else None,
    )


def cgroup_paths(machine: Machine, process: str = "self") -> dict[str, str]:
    """Controller to path, "" for v2: /proc/PID/cgroup. Named hierarchies have their name, "name=systemd"."""
    paths: dict[str, str] = {}
    for line in (machine.text(f"/proc/{process}/cgroup") or "").splitlines():
        _, separator, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if separator and second:
            paths |= dict.fromkeys(controllers.split(","), path.removesuffix(" (deleted)"))
    return paths


def _folders(machine: Machine, controller: str) -> list[str]:
    """The folders of this process's cgroup and of its parents as far as they are to be seen, the innermost first."""
    path = cgroup_paths(machine).get(controller, "/")
    seen = [
        (mount.root, mount.point)
        for mount in mounts(machine)
        if (mount.kind == "cgroup" and controller in mount.options.split(","))
        or (mount.kind == "cgroup2" and not controller)
    ]
    seen += [("/", point) for point in (_V1_MOUNTS[controller] if controller else _V2_MOUNTS)]
    for root, point in seen:
        if machine.exists(point):
            return _upward(machine, point, _parts(root), _parts(path))
    return []


def _upward(machine: Machine, point: str, root: list[str], path: list[str]) -> list[str]:
    """From the cgroup `path` up to the mount at `point`, which shows what is below `root`. A container may see its own
    cgroup as the mount although /proc names it as the host does, and a process that a namespace does not contain has a
    path with `..` in it: what cannot be seen is left out from the front."""
    inner = path[len(root) :] if path[: len(root)] == root else path
    inner = [name for name in inner if name != ".."]
    while inner and not machine.exists("/".join((point, *inner))):
        inner = inner[1:]
    return ["/".join((point, *inner[:count])) for count in range(len(inner), -1, -1)]


def _parts(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _quotas_v2(machine: Machine, folders: Iterable[str]) -> Iterator[tuple[float, str]]:
    for folder in folders:
        fields = (machine.text(f"{folder}/cpu.max") or "").split()
        counts = [parse_count(field) for field in fields]
        if counts and counts[0]:
            period = counts[1] if len(counts) > 1 else _PERIOD_MICROSECONDS
            yield counts[0] / (period or _PERIOD_MICROSECONDS), f"{folder}/cpu.max"


def _quotas_v1(machine: Machine, folders: Iterable[str]) -> Iterator[tuple[float, str]]:
    for folder in folders:
        quota = machine.integer(f"{folder}/cpu.cfs_quota_us")
        period = machine.integer(f"{folder}/cpu.cfs_period_us") or _PERIOD_MICROSECONDS
        if quota and quota > 0 and period > 0:  # -1: none
            yield quota / period, f"{folder}/cpu.cfs_quota_us"


def _cpusets(machine: Machine, unified: Iterable[str], cpuset: Iterable[str]) -> Iterator[tuple[int, ...] | None]:
    yield from (machine.cpus(f"{folder}/cpuset.cpus.effective") for folder in unified)
    for folder in cpuset:
        yield machine.cpus(f"{folder}/cpuset.effective_cpus") or machine.cpus(f"{folder}/cpuset.cpus")


def _common(lists: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The CPUs that are in all lists; a list that has none of the others' is left out, since it cannot be true."""
    common: set[int] = set()
    for cpus in lists:
        common = common & set(cpus or ()) or common or set(cpus or ())
    return tuple(sorted(common)) or None


def _list(text: str) -> tuple[int, ...] | None:
    try:
        return parse_cpu_list(text)
    except ValueError:
        return None


def _memory_v2(machine: Machine, folders: Iterable[str]) -> Iterator[_MemoryLevel]:
    """Above memory.high a cgroup is slowed down until it is below: for a model that is as good as the end."""
    for folder in folders:
        statistics = machine.fields(f"{folder}/memory.stat", None)
        for name in ("memory.max", "memory.high"):
            limit = _limit(_count(machine, f"{folder}/{name}"))
            if limit is not None:
                used = _count(machine, f"{folder}/memory.current") or 0
                yield _MemoryLevel(f"{folder}/{name}", limit, _free(limit, used, statistics, ""))


def _memory_v1(machine: Machine, folders: Iterable[str]) -> Iterator[_MemoryLevel]:
    """`hierarchical_memory_limit` includes parents that the container does not see."""
    for folder in folders:
        statistics = machine.fields(f"{folder}/memory.stat", None)
        stated = {
            f"{folder}/memory.limit_in_bytes": _count(machine, f"{folder}/memory.limit_in_bytes"),
            f"{folder}/memory.stat": parse_count(statistics.get("hierarchical_memory_limit")),
        }
        for source, count in stated.items():
            limit = _limit(count)
            if limit is not None:
                used = _count(machine, f"{folder}/memory.usage_in_bytes") or 0
                yield _MemoryLevel(source, limit, _free(limit, used, statistics, "total_"))


def _free(limit: int, used: int, statistics: dict[str, str], prefix: str) -> int:
    """Active file pages are counted as well: the weights that a CPU engine has mapped are such, and the memory budget
    takes mapped weights as available on a machine without limits, too."""
    names = ("inactive_file", "active_file")
    cache = sum(parse_count(statistics.get(f"{prefix}{name}", statistics.get(name))) or 0 for name in names)
    return max(limit - max(used - cache, 0), 0)


def _swap_v2(machine: Machine, folders: Iterable[str]) -> Iterator[tuple[int, int | None]]:
    for folder in folders:
        limit = _limit(_count(machine, f"{folder}/memory.swap.max"))
        if limit is not None:
            yield limit, _count(machine, f"{folder}/memory.swap.current")


def _swap_v1(machine: Machine, folders: Iterable[str]) -> Iterator[tuple[int, int | None]]:
    """memsw counts memory and swap together."""
    for folder in folders:
        limit, used = (
            tuple(_count(machine, f"{folder}/memory.{kind}{name}_in_bytes") for kind in ("memsw.", ""))
            for name in ("limit", "usage")
        )
        both, memory = _limit(limit[0]), _limit(limit[1])
        if both is not None and memory is not None:
            swapped = None if None in used else max((used[0] or 0) - (used[1] or 0), 0)
            yield max(both - memory, 0), swapped


def _count(machine: Machine, path: str) -> int | None:
    return parse_count(machine.text(path))


def _limit(count: int | None) -> int | None:
    return None if count is None or count >= _NO_LIMIT_BYTES else count

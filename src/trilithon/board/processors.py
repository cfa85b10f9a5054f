"""Which CPUs there are, of what kind, and which of them to run on: big clusters, one CPU per physical core."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from trilithon.board.chips import Core, core_of
from trilithon.board.limits.cgroups import Limits, read_limits
from trilithon.board.sysfs import Machine

__all__ = ["Cluster", "ClusterKind", "big_cpus", "cpu_features", "physical_cores", "read_clusters"]

ClusterKind = Literal["big", "little", "all"]

_CPUS = "/sys/devices/system/cpu"
# A CPU with less than this part of the fastest one's capacity is a little one: A55 beside A76 has about 0.5, A53 beside
# A72 0.45, an x86 efficiency core about 0.65; cores of one design that differ by binning stay above 0.9.
_LITTLE_CAPACITY = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """CPUs of one kind. `max_khz` is the hardware's top clock, `limit_khz` what cpufreq allows at most now, by hand or
    because of heat, `current_khz` the fastest CPU's clock now; `capacity` the kernel's relative speed (1024 for the
    fastest), `governor` cpufreq's. Each None where the kernel does not say."""

    cpus: tuple[int, ...]
    kind: ClusterKind
    core_type: str | None
    max_khz: int | None
    limit_khz: int | None
    current_khz: int | None
    capacity: int | None
    governor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """cpufreq's policy of a CPU; all None where it has none."""

    max_khz: int | None = None
    limit_khz: int | None = None
    current_khz: int | None = None
    governor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cpu:
    number: int
    core: Core | None
    capacity: int | None
    policy: _Policy


def read_clusters(machine: Machine, limits: Limits | None = None) -> tuple[Cluster, ...]:
    """The CPUs that are online, in groups of one kind, core type and governor, the first CPU's group first. Only those
    that this process may use where lxcfs hides the others. `limits` None: read here."""
    cpus = _cpus(machine, (limits or read_limits(machine)).cpus or ())
    little = _little(cpus, machine.cpus("/sys/devices/cpu_atom/cpus") or ())
    groups: dict[tuple[ClusterKind, str | None, str | None], list[_Cpu]] = {}
    for cpu in cpus:
        kind: ClusterKind = "all" if not little else "little" if cpu.number in little else "big"
        core_type = cpu.core.name if cpu.core else None
        groups.setdefault((kind, core_type, cpu.policy.governor), []).append(cpu)
    return tuple(
        Cluster(
            cpus=tuple(cpu.number for cpu in members),
            kind=kind,
            core_type=core_type,
            max_khz=_largest(cpu.policy.max_khz for cpu in members),
            limit_khz=_largest(cpu.policy.limit_khz for cpu in members),
            current_khz=_largest(cpu.policy.current_khz for cpu in members),
            capacity=_largest(cpu.capacity for cpu in members),
            governor=governor,
        )
        for (kind, core_type, governor), members in groups.items()
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value), default=None)


def _cpus(machine: Machine, allowed: tuple[int, ...]) -> list[_Cpu]:
    cores = _cores(machine)
    policies: dict[int, _Policy] = {}
    for folder in machine.glob(f"{_CPUS}/cpufreq/policy*"):
        policy = _policy(machine, folder)
        policies |= dict.fromkeys(machine.cpus(f"{folder}/related_cpus") or (), policy)
    listed = machine.cpus(f"{_CPUS}/online")
    online = listed or tuple(sorted(cores))
    if (listed or not set(online) & set(allowed)) and (renamed := _behind_lxcfs(machine, online, allowed)):
        online = renamed
        if not set(renamed) <= cores.keys():  # the nth entry is the nth allowed CPU's
            cores = dict(zip(renamed, cores.values(), strict=False))
    return [
        _Cpu(
            number=cpu,
            core=cores.get(cpu),
            capacity=machine.integer(f"{_CPUS}/cpu{cpu}/cpu_capacity"),
            policy=policies.get(cpu, _Policy()),
        )
        for cpu in online
    ]


def _behind_lxcfs(machine: Machine, online: tuple[int, ...], allowed: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs of a container whose `online` and /proc/cpuinfo are lxcfs's, which counts the allowed CPUs from 0; empty
    elsewhere. The kernel lets no process have only CPUs that are offline, and an offline CPU has no topology."""
    there = tuple(cpu for cpu in allowed if cpu in online or machine.exists(f"{_CPUS}/cpu{cpu}/topology"))
    if allowed and not set(allowed) & set(online):
        return there or allowed
    return there if set(there) - set(online) else ()


def _policy(machine: Machine, folder: str) -> _Policy:
    limit = machine.integer(f"{folder}/scaling_max_freq")
    return _Policy(
        max_khz=machine.integer(f"{folder}/cpuinfo_max_freq") or limit,
        limit_khz=limit,
        current_khz=machine.integer(f"{folder}/scaling_cur_freq"),
        governor=machine.text(f"{folder}/scaling_governor"),
    )


def _cores(machine: Machine) -> dict[int, Core | None]:
    """CPU number to its design; None on x86, where /proc/cpuinfo has no part numbers."""
    cores: dict[int, Core | None] = {}
    cpu, implementer = -1, ""
    for line in (machine.text("/proc/cpuinfo") or "").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor" and re.fullmatch(r"\d{1,5}", value, re.ASCII):
            cpu, implementer = int(value), ""
            cores[cpu] = None
        elif name == "CPU implementer":
            implementer = value
        elif name == "CPU part" and cpu in cores:
            cores[cpu] = core_of(implementer, value)
    return cores


def _little(cpus: list[_Cpu], efficiency: tuple[int, ...]) -> set[int]:
    """The slow CPUs, empty when all are of one kind; `efficiency` are those that an x86 kernel calls so."""
    if efficiency:
        return set(efficiency) if len(efficiency) < len(cpus) else set()
    fastest = max((cpu.capacity or 0 for cpu in cpus), default=0)
    little = {
        cpu.number
        for cpu in cpus
        if (cpu.capacity or fastest) < _LITTLE_CAPACITY * fastest or (cpu.core is not None and cpu.core.little)
    }
    return little if len(little) < len(cpus) else set()


def cpu_features(machine: Machine, cpus: Collection[int] | None = None) -> frozenset[str]:
    """The instruction sets that every CPU has, or every one of `cpus` where each of them is listed, as the kernel calls
    them ("asimddp"); x86 calls them flags."""
    text = machine.text("/proc/cpuinfo") or ""
    pairs = re.findall(r"^processor\s*:\s*(\d{1,5})$(?:\n.+)*?\n(?:Features|flags)\s*:(.*)$", text, re.MULTILINE)
    of_cpu = {int(number): frozenset(words.split()) for number, words in pairs}
    if cpus and of_cpu.keys() >= set(cpus):
        return frozenset.intersection(*(of_cpu[cpu] for cpu in cpus))
    lines = re.findall(r"^(?:Features|flags)\s*:(.*)$", text, re.MULTILINE)
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()


def physical_cores(machine: Machine, cpus: list[int]) -> list[int]:
    """One CPU of each physical core, the first."""
    seen: set[int] = set()
    firsts = []
    for cpu in cpus:
        if cpu not in seen:
            firsts.append(cpu)
            seen.update(machine.cpus(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list") or (cpu,))
    return firsts


def big_cpus(machine: Machine, clusters: tuple[Cluster, ...], limits: Limits) -> tuple[int, ...]:
    """Kept to what this process may use (taskset, cpuset, CPU quota); the little cores when those are all of it."""
    allowed = [cpu for cluster in clusters for cpu in cluster.cpus if limits.cpus is None or cpu in limits.cpus]
    usable = physical_cores(machine, allowed)
    little = {cpu for cluster in clusters if cluster.kind == "little" for cpu in cluster.cpus}
    return tuple(sorted([cpu for cpu in usable if cpu not in little] or usable)[: limits.threads])

"""Which Arm instructions a build is compiled for: those of every core that engines are pinned to.

llama.cpp's own detection (GGML_NATIVE) asks the compiler, which an old one answers with too little, and runs its
probes on whatever core is free; that of ik_llama.cpp has none for Arm."""

from collections.abc import Callable
from dataclasses import dataclass

from trilithon.board.limits.cgroups import read_limits
from trilithon.board.processors import big_cpus, cpu_features, read_clusters
from trilithon.board.sysfs import Machine, format_cpu_list

__all__ = ["ArmTarget", "target_of"]

# What Armv8.2-A requires, by the kernel's names (arch/arm64/kernel/cpufeature.c).
_ARMV8_2 = frozenset({"atomics", "asimdrdm", "crc32"})
# The compiler's name of an extension, the features it needs, and those for which ggml has kernels; the gain falls.
_EXTENSIONS = (
    ("dotprod", {"asimddp"}),
    ("fp16", {"fphp", "asimdhp"}),
    ("i8mm", {"i8mm"}),
    ("sve", {"sve"}),
    ("sve2", {"sve", "sve2"}),
)


@dataclass(frozen=True, slots=True)
class ArmTarget:
    """`march` is the compiler's -march, empty where the compiler is left to find out: not on 64-bit Arm."""

    march: str = ""
    words: str = ""


def target_of(machine: Machine, accepts: Callable[[str], bool]) -> ArmTarget:
    """`accepts` tells whether the compiler knows a -march; what it does not know is left out, from the end."""
    clusters = read_clusters(machine)
    pinned = any(cluster.kind == "little" for cluster in clusters)
    cpus = big_cpus(machine, clusters, read_limits(machine)) if pinned else ()
    features = cpu_features(machine, cpus)
    if "asimd" not in features:
        return ArmTarget()
    names = [name for name, needed in _EXTENSIONS if needed <= features]
    base = "armv8.2-a" if names and features >= _ARMV8_2 else "armv8-a"
    known = len(names)
    while known and not accepts("+".join((base, *names[:known]))):
        known -= 1
    march = "+".join((base if known else "armv8-a", *names[:known]))
    types = {c.core_type or "unknown" for c in clusters if not cpus or set(cpus) & set(c.cpus)}
    where = f"CPU {format_cpu_list(cpus)}" if cpus else "every CPU"
    lost = f"; the compiler is too old for {' and '.join(names[known:])}" if known < len(names) else ""
    return ArmTarget(march, f"compiling for {march}, which {where} has ({', '.join(sorted(types))}){lost}")

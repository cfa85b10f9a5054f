"""What a plan was measured on, and whether that is still so: a new kernel, driver, runtime or build, another memory
size or clock may make another placement the best one, or this one wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

from trilithon.board.snapshot import Board, whole_gibibytes
from trilithon.board.sysfs import format_cpu_list
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import builds_of
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.results.plans import Plan
from trilithon.settings import Configuration

__all__ = ["StaleFact", "fingerprint_of", "stale_facts"]

_FIXED_CLOCK = "userspace"  # the devfreq governor with which someone chose the clock


@dataclass(frozen=True, slots=True)
class StaleFact:
    """A fact of the fingerprint that has changed. Two are none: "version", a plan of a version that kept no
    fingerprint, and "gone", a placement that cannot run here any more, with the reason in `after`."""

    fact: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return str(self.text)

    @property
    def text(self) -> Message:
        """ "kernel 6.1.43 → 6.1.75"."""
        if self.fact == "version":
            return Message("made by an older version")
        if self.fact == "gone":
            return Message("cannot run: {reason}", reason=self.after)
        return Message("{fact} {before} → {after}", fact=self.fact, before=self.before, after=self.after)


def fingerprint_of(placement: str, board: Board, configuration: Configuration) -> dict[str, str]:
    """Facts of this machine by name, for a plan with this placement. Raises PlacementError where its build is gone."""
    builds, memory = builds_of(parse_placement(placement), configuration), board.usable_memory_bytes
    gpus = {device.driver for build in builds for device in build.devices if device.driver}
    gpus |= {f"{driver.name} {driver.version or ''}".strip() for driver in board.vulkan if driver.serves}
    return {
        "board": board.identity(),
        "kernel": board.kernel,
        "GPU driver": ", ".join([*([board.gpu.driver] if board.gpu else []), *sorted(gpus)]) or "none",
        "NPU driver": f"{board.npu.driver} {board.npu.version or ''}".strip() if board.npu else "none",
        "NPU runtime": ", ".join(f"{copy.library} {copy.version or 'unknown'}" for copy in board.runtimes) or "none",
        "build": " + ".join(" ".join(filter(None, (b.engine, b.name, b.version, b.fingerprint))) for b in builds),
        "memory": "unknown" if memory is None else whole_gibibytes(memory),
        "CPU quota": "none" if board.limits.cpu_quota is None else f"{board.limits.cpu_quota:g}",
        "top clocks": ", ".join(f"{name} {hertz / 1e6:.0f} MHz" for name, hertz in _top_clocks(board)) or "unknown",
        "governors": ", ".join(_governors(board)) or "none",
    }


def stale_facts(plan: Plan, board: Board, configuration: Configuration) -> tuple[StaleFact, ...]:
    """What is no longer as it was when the plan was made. A plan that was set by hand rests
    on no measurement: only its build can go."""
    try:
        now = fingerprint_of(plan.placement, board, configuration)
    except PlacementError as error:
        return (StaleFact("gone", after=str(error)),)
    if plan.by_hand:
        return ()
    if not plan.fingerprint:
        return (StaleFact("version"),)
    return tuple(_change(name, was, now[name]) for name, was in plan.fingerprint.items() if now.get(name, was) != was)


def _change(name: str, was: str, now: str) -> StaleFact:
    """Of lists only what differs."""
    before, after = was.split(", "), now.split(", ")
    gone = ", ".join(part for part in before if part not in after) or "–"
    new = ", ".join(part for part in after if part not in before) or "–"
    return StaleFact(name, gone, new)


def _top_clocks(board: Board) -> Iterator[tuple[str, float]]:
    for cluster in board.clusters:
        if cluster.max_khz:
            yield f"cpu{format_cpu_list(cluster.cpus)}", cluster.max_khz * 1e3
    for clock in board.clocks:
        # Heat lowers the limit of a GPU or NPU for a while; that of the memory is lowered by hand.
        limit = clock.limit_hz if clock.unit == "memory" else None
        if top := limit or clock.max_hz:
            yield clock.unit, top


def _governors(board: Board) -> Iterator[str]:
    for cluster in board.clusters:
        if cluster.governor:
            yield f"cpu{format_cpu_list(cluster.cpus)} {cluster.governor}"
    for clock in board.clocks:
        if clock.governor:
            fixed = f" {(clock.current_hz or 0) / 1e6:.0f} MHz" if clock.governor == _FIXED_CLOCK else ""
            yield f"{clock.unit} {clock.governor}{fixed}"

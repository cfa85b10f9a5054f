"""Checks around a round: is the machine idle before it, and did anything disturb it until its end.

Every threshold is a constant here, with its reason; `docs/methodology.md` says the same for readers."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trilithon.board.cooling import read_cooling
from trilithon.board.devfreq import devfreq_entries
from trilithon.board.sensors.sampler import Recording
from trilithon.board.sysfs import THIS_MACHINE, Machine, parse_count, parse_time_in_state

__all__ = ["BoardReading", "Policy", "UnitClock", "settle", "warnings_between"]

WINDOW_SECONDS = 0.25
# A quarter of a second holds 25 scheduler ticks per CPU, so 10% is the least that can be told from a stray tick.
IDLE_FRACTION = 0.10
# Decoding threads wait for the slowest of them: 10% of one CPU taken away can cost a round up to 10%.
BACKGROUND_FRACTION = 0.10
# A twentieth of the time at three quarters of the clock changes a rate by about 1%, half of the 2% aimed for.
SLOWED_FRACTION = 0.05
# Under another governor only CPUs that had work say something: an idle CPU is clocked down on purpose.
BUSY_FRACTION = 0.50
# A clock may be rounded by its driver, never by a tenth; the steps of CPU and memory are further apart.
CLOCK_FRACTION = 0.90
# Boards are reported to lose 15-20% to throttling from 75-81 °C on.
HOT_CELSIUS = 80.0
# Zones report nonsense when their sensor is off; no chip works beyond this.
BROKEN_CELSIUS = 150.0
# A few pages wander in at any time; a mebibyte is a program waking up, or the model itself coming back.
SWAPPED_BYTES = 2**20

# Governors under which a clock stays where it was put.
PINNED_GOVERNORS = {"performance", "userspace"}

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_NO_RECORDING = Recording()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One cpufreq policy. `ticks` is the time spent at each clock (kHz to ticks of 10 ms), None where the kernel
    keeps no count; `top_khz` the highest clock of its table, None where the driver has no table."""

    cpus: tuple[int, ...]
    governor: str | None
    current_khz: int | None
    top_khz: int | None
    ticks: Mapping[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitClock:
    """The clock of memory, GPU or NPU. `top_hz` is the highest of its table, None where the driver has no table."""

    governor: str | None
    current_hz: int | None
    top_hz: int | None

    @property
    def pinned(self) -> bool:
        return self.governor in PINNED_GOVERNORS


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardReading:
    """The machine's counters at one moment (`at_ns` monotonic). What the kernel does not count is None or absent.

    `busy_ticks` and `stolen_ticks` are per CPU: programs and kernel at work, and time that a hypervisor took.
    `units` are the clocks of "memory", "GPU" and "NPU"; `cooling` the steps of what slows parts that are hot."""

    at_ns: int
    busy_ticks: Mapping[int, int]
    stolen_ticks: Mapping[int, int]
    policies: Mapping[str, Policy]
    celsius: Mapping[str, float]
    units: Mapping[str, UnitClock]
    cooling: Mapping[str, int]
    swapped_in_pages: int | None
    swapped_out_pages: int | None
    oom_kills: int | None
    throttle_events: int | None

    @classmethod
    def take(cls, machine: Machine = THIS_MACHINE) -> "BoardReading":
        busy, stolen = _cpu_ticks(machine)
        counters = machine.fields("/proc/vmstat", None)
        return cls(
            at_ns=time.monotonic_ns(),
            busy_ticks=busy,
            stolen_ticks=stolen,
            policies=_policies(machine),
            celsius=_celsius(machine),
            units=_unit_clocks(machine),
            cooling={device.name: device.step for device in read_cooling(machine)},
            swapped_in_pages=parse_count(counters.get("pswpin")),
            swapped_out_pages=parse_count(counters.get("pswpout")),
            oom_kills=parse_count(counters.get("oom_kill")),
            throttle_events=_throttle_events(machine),
        )


async def settle(machine: Machine = THIS_MACHINE, *, limit_seconds: float) -> tuple[str, ...]:
    """Wait until programs use less than a tenth of all CPUs; a warning when they never did.

    At most `limit_seconds`, in whole windows of a quarter second, and at least one."""
    before, before_ns = _cpu_ticks(machine)[0], time.monotonic_ns()
    if not before:
        return ("whether the machine is idle is unknown: /proc/stat cannot be read",)
    fraction = 0.0
    for _ in range(max(1, int(limit_seconds / WINDOW_SECONDS))):
        await asyncio.sleep(WINDOW_SECONDS)
        after, after_ns = _cpu_ticks(machine)[0], time.monotonic_ns()
        fraction = _seconds(before, after) / ((after_ns - before_ns) / 1e9) / len(before)
        if fraction < IDLE_FRACTION:
            return ()
        before, before_ns = after, after_ns
    return (f"not idle after {limit_seconds:g} s: other programs used {fraction:.0%} of all CPUs",)


def warnings_between(
    before: BoardReading, after: BoardReading, *, own_cpu_seconds: float, recording: Recording = _NO_RECORDING
) -> tuple[str, ...]:
    """What disturbed the time between two readings, in words with figures.

    `own_cpu_seconds` is the CPU time that the measured programs and Trilithon itself used in it; `recording` what the
    sensors said meanwhile."""
    return (
        *_background(before, after, own_cpu_seconds),
        *_throttled(before, after),
        *_cooled(before, after),
        *_governors_changed(before, after),
        *_unit_clocks_fell(before, after, recording),
        *_hot(after, recording),
        *_swapped(before, after),
        *_killed(before, after),
    )


def _background(before: BoardReading, after: BoardReading, own_cpu_seconds: float) -> Iterator[str]:
    elapsed = (after.at_ns - before.at_ns) / 1e9
    if elapsed <= 0:
        return
    others = (_seconds(before.busy_ticks, after.busy_ticks) - own_cpu_seconds) / elapsed
    if others > BACKGROUND_FRACTION:
        yield f"other programs used {others:.0%} of one CPU"
    stolen = _seconds(before.stolen_ticks, after.stolen_ticks) / elapsed
    if stolen > BACKGROUND_FRACTION:
        yield f"the hypervisor took {stolen:.0%} of one CPU"


def _throttled(before: BoardReading, after: BoardReading) -> Iterator[str]:
    for name, now in after.policies.items():
        earlier = before.policies.get(name)
        if earlier is None:
            continue
        slowed = _slowed_fraction(earlier, now)
        pinned = earlier.governor == now.governor == "performance"
        if slowed is not None and slowed > SLOWED_FRACTION and pinned:
            yield f"throttled: {name} spent {slowed:.0%} of the time below its top clock"
        elif slowed is not None and slowed > SLOWED_FRACTION and _was_busy(now.cpus, before, after):
            yield f"{name} spent {slowed:.0%} of the time below its top clock (governor {now.governor})"
        elif slowed is None and pinned and (now.current_khz or 0) < CLOCK_FRACTION * (now.top_khz or 0):
            yield f"throttled: {name} is at {(now.current_khz or 0) / 1000:.0f} of {(now.top_khz or 0) / 1000:.0f} MHz"
    events = _increase(before.throttle_events, after.throttle_events)
    if events:
        yield f"throttled: the CPU counted {events} thermal event{'s' * (events > 1)}"


def _slowed_fraction(before: Policy, after: Policy) -> float | None:
    """The part of the time in between that was spent below the top clock; None when it was not counted."""
    if not before.ticks or not after.ticks:
        return None
    spent = {khz: ticks - before.ticks.get(khz, 0) for khz, ticks in after.ticks.items()}
    total = sum(spent.values())
    return 1 - spent[max(spent)] / total if total > 0 else None


def _was_busy(cpus: tuple[int, ...], before: BoardReading, after: BoardReading) -> bool:
    least = BUSY_FRACTION * (after.at_ns - before.at_ns) / 1e9
    busy = ({cpu: after.busy_ticks[cpu]} for cpu in cpus if cpu in after.busy_ticks)
    return any(_seconds(before.busy_ticks, ticks) > least for ticks in busy)


def _cooled(before: BoardReading, after: BoardReading) -> Iterator[str]:
    for device, now in after.cooling.items():
        earlier = before.cooling.get(device, 0)
        if now > earlier:
            yield f"throttled: cooling slowed {device} from step {earlier} to {now}"
        elif earlier:
            yield f"throttled: cooling had slowed {device} from the beginning, by step {earlier}"


def _governors_changed(before: BoardReading, after: BoardReading) -> Iterator[str]:
    changes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    earlier = _governors(before)
    for name, new in _governors(after).items():
        old = earlier.get(name)
        if old and new and old != new:
            changes[old, new].append(name)
    for (old, new), names in changes.items():
        yield f"clock governor changed from {old} to {new}: {', '.join(names)}"


def _governors(reading: BoardReading) -> dict[str, str | None]:
    of_policies = {name: policy.governor for name, policy in reading.policies.items()}
    return of_policies | {name: clock.governor for name, clock in reading.units.items()}


def _unit_clocks_fell(before: BoardReading, after: BoardReading, recording: Recording) -> Iterator[str]:
    """GPU and NPU only where their clocks are pinned: else they fall as soon as a unit idles, as it does at the end.
    Memory is never idle while something runs."""
    for unit, now in after.units.items():
        earlier = before.units.get(unit)
        pinned = earlier is not None and earlier.pinned and now.pinned
        if earlier is None or not (pinned or unit == "memory"):
            continue
        low, slowest = _time_below_top(unit, now.top_hz, recording)
        if low > SLOWED_FRACTION:
            reached = f"down to {slowest / 1e6:.0f} of {(now.top_hz or 0) / 1e6:.0f} MHz"
            governor = "" if pinned else f", governor {now.governor or 'unknown'}"
            head = "throttled: " if pinned else ""
            yield f"{head}the {unit} clock was below its top for {low:.0%} of the time ({reached}{governor})"
        elif (now.current_hz or 0) < CLOCK_FRACTION * (earlier.current_hz or 0) and now.current_hz is not None:
            yield f"the {unit} clock fell from {(earlier.current_hz or 0) / 1e6:.0f} to {now.current_hz / 1e6:.0f} MHz"


def _time_below_top(unit: str, top_hz: int | None, recording: Recording) -> tuple[float, float]:
    """The part of the recorded clocks that were below the top, and the lowest of them; 0 where none was recorded."""
    clocks = _recorded("clock", unit, recording)
    low = [hertz for hertz in clocks if hertz < CLOCK_FRACTION * (top_hz or 0)]
    return (len(low) / len(clocks), min(low)) if low else (0.0, 0.0)


def _recorded(quantity: str, name: str, recording: Recording) -> list[float]:
    places = [n for n, channel in enumerate(recording.channels) if (channel.quantity, channel.name) == (quantity, name)]
    return [value for frame in recording.frames for n in places if (value := frame.values[n]) is not None]


def _hot(after: BoardReading, recording: Recording) -> Iterator[str]:
    """Said only where the CPU keeps no count of throttling: one that does is more exact than a temperature."""
    if after.throttle_events is not None:
        return
    names = dict.fromkeys(channel.name for channel in recording.channels if channel.quantity == "temperature")
    hottest = {name: max(_recorded("temperature", name, recording), default=0.0) for name in names}
    for zone, celsius in after.celsius.items():
        hottest[zone] = max(celsius, hottest.get(zone, 0.0))
    zone, celsius = max(hottest.items(), key=lambda item: item[1], default=("", 0.0))
    if celsius >= HOT_CELSIUS:
        yield f"hot: up to {celsius:.0f} °C ({zone})"


def _swapped(before: BoardReading, after: BoardReading) -> Iterator[str]:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    for word, old, new in (
        ("in", before.swapped_in_pages, after.swapped_in_pages),
        ("out", before.swapped_out_pages, after.swapped_out_pages),
    ):
        count = _increase(old, new) * page_bytes
        if count >= SWAPPED_BYTES:
            yield f"swapped {count / 2**20:.0f} MiB {word}"


def _killed(before: BoardReading, after: BoardReading) -> Iterator[str]:
    kills = _increase(before.oom_kills, after.oom_kills)
    if kills:
        yield f"memory ran out: the kernel killed {kills} process{'es' * (kills > 1)}"


def _increase(before: int | None, after: int | None) -> int:
    """0 when either is unknown: what is not counted cannot be warned of."""
    return 0 if before is None or after is None else max(0, after - before)


def _seconds(before: Mapping[int, int], after: Mapping[int, int]) -> float:
    """CPU seconds between two counts, over the CPUs that were online at both."""
    return sum(max(0, ticks - before[cpu]) for cpu, ticks in after.items() if cpu in before) / _TICKS_PER_SECOND


def _cpu_ticks(machine: Machine) -> tuple[dict[int, int], dict[int, int]]:
    """Busy and stolen ticks per CPU. Interrupts are left out: the measured programs cause them, unaccounted."""
    busy: dict[int, int] = {}
    stolen: dict[int, int] = {}
    for name, text in machine.fields("/proc/stat", None).items():
        cpu = parse_count(name.removeprefix("cpu")) if name.startswith("cpu") else None
        ticks = [count for word in text.split() if (count := parse_count(word)) is not None]
        if cpu is None or len(ticks) < 8 or len(ticks) < len(text.split()):
            continue
        busy[cpu] = sum(ticks[:3])  # user, nice, system
        stolen[cpu] = ticks[7]
    return busy, stolen


def _policies(machine: Machine) -> dict[str, Policy]:
    return {
        path.rpartition("/")[2]: Policy(
            cpus=machine.cpus(f"{path}/related_cpus") or (),
            governor=machine.text(f"{path}/scaling_governor"),
            current_khz=machine.integer(f"{path}/scaling_cur_freq"),
            top_khz=max(machine.integers(f"{path}/scaling_available_frequencies") or (), default=None),
            ticks=machine.parsed(f"{path}/stats/time_in_state", parse_time_in_state),
        )
        for path in machine.glob("/sys/devices/system/cpu/cpufreq/policy*")
    }


def _unit_clocks(machine: Machine) -> dict[str, UnitClock]:
    """Of two entries for one unit the last counts; there is one of each on every known board."""
    return {
        entry.title: UnitClock(
            governor=machine.text(f"{entry.folder}/governor"),
            current_hz=machine.integer(f"{entry.folder}/cur_freq"),
            top_hz=max(machine.integers(f"{entry.folder}/available_frequencies") or (), default=None),
        )
        for entry in devfreq_entries(machine)
    }


def _celsius(machine: Machine) -> dict[str, float]:
    """By the zone's type, the hottest where several zones share it."""
    celsius: dict[str, float] = {}
    for zone in machine.glob("/sys/class/thermal/thermal_zone*"):
        millidegrees = machine.integer(f"{zone}/temp")
        if millidegrees is not None and 0 < millidegrees < BROKEN_CELSIUS * 1000:
            name = machine.text(f"{zone}/type") or zone.rpartition("/")[2]
            celsius[name] = max(celsius.get(name, 0.0), millidegrees / 1000)
    return celsius


def _throttle_events(machine: Machine) -> int | None:
    """x86: each core's own count, and a package's, which every CPU of it repeats."""
    folder = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"
    cores = [machine.integer(path) for path in machine.glob(f"{folder}/core_throttle_count")]
    packages = [machine.integer(path) for path in machine.glob(f"{folder}/package_throttle_count")]
    if not cores and not packages:
        return None
    return sum(count or 0 for count in cores) + max((count or 0 for count in packages), default=0)

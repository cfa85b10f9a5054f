import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.bench.checks import BoardReading, Policy, UnitClock, settle, warnings_between
from trilithon.board.sensors.probes import Channel, Quantity
from trilithon.board.sensors.sampler import Recording
from trilithon.board.sensors.sensors import Frame
from trilithon.board.sysfs import Machine

FOLDER = "/sys/devices/system/cpu/cpufreq/policy0"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

POLICY = Policy(
    cpus=(0, 1), governor="performance", current_khz=2_400_000, top_khz=2_400_000, ticks={408_000: 100, 2_400_000: 1000}
)
MEMORY = UnitClock(governor="performance", current_hz=2_112_000_000, top_hz=2_112_000_000)
NPU = UnitClock(governor="performance", current_hz=1_000_000_000, top_hz=1_000_000_000)
QUIET = BoardReading(
    at_ns=7_000_000_000,
    busy_ticks={0: 0, 1: 0},
    stolen_ticks={0: 0, 1: 0},
    policies={"policy0": POLICY},
    celsius={"soc-thermal": 45.0},
    units={"memory": MEMORY, "NPU": NPU},
    cooling={"cpufreq-cpu0": 0},
    swapped_in_pages=100,
    swapped_out_pages=100,
    oom_kills=0,
    throttle_events=None,
)
LATER = replace(QUIET, at_ns=17_000_000_000)


def with_policy(reading: BoardReading, policy: Policy) -> BoardReading:
    return replace(reading, policies={"policy0": policy})


def test_nothing_happened_nothing_is_said() -> None:
    assert warnings_between(QUIET, LATER, own_cpu_seconds=0.0) == ()


SLOW = replace(POLICY, ticks={408_000: 151, 2_400_000: 1949})  # 5.1% of a thousand ticks
UNCOUNTED = replace(POLICY, ticks=None, current_khz=2_160_000)
ON_DEMAND = replace(POLICY, governor="ondemand")


@pytest.mark.parametrize(
    ("before", "at_most", "over"),
    [
        ({}, {"busy_ticks": {0: TICKS, 1: 0}}, {"busy_ticks": {0: TICKS + 1, 1: 0}}),
        ({}, {"stolen_ticks": {0: TICKS, 1: 0}}, {"stolen_ticks": {0: TICKS, 1: 1}}),
        ({}, {"celsius": {"soc": 79.9}}, {"celsius": {"soc": 80.0}}),
        ({}, {"swapped_in_pages": 99 + 2**20 // PAGE_BYTES}, {"swapped_in_pages": 100 + 2**20 // PAGE_BYTES}),
        ({}, {"swapped_out_pages": 99 + 2**20 // PAGE_BYTES}, {"swapped_out_pages": 100 + 2**20 // PAGE_BYTES}),
        (
            {},
            {"units": {"memory": replace(MEMORY, current_hz=2_112_000_000 * 9 // 10)}},
            {"units": {"memory": replace(MEMORY, current_hz=1_900_000_000)}},
        ),
        (
            {},
            {"policies": {"policy0": replace(SLOW, ticks={408_000: 149, 2_400_000: 1951})}},
            {"policies": {"policy0": SLOW}},
        ),
        (
            {"policies": {"policy0": replace(POLICY, ticks=None)}},
            {"policies": {"policy0": UNCOUNTED}},
            {"policies": {"policy0": replace(UNCOUNTED, current_khz=2_159_999)}},
        ),
        (
            {"policies": {"policy0": ON_DEMAND}, "busy_ticks": {0: 70, 1: 80}},
            {
                "policies": {"policy0": replace(SLOW, governor="ondemand")},
                "busy_ticks": {0: 70 + 2 * TICKS, 1: 80 + 5 * TICKS},
            },
            {
                "policies": {"policy0": replace(SLOW, governor="ondemand")},
                "busy_ticks": {0: 70 + 2 * TICKS, 1: 81 + 5 * TICKS},
            },
        ),
    ],
)
def test_each_bound_is_where_it_says(before: dict[str, Any], at_most: dict[str, Any], over: dict[str, Any]) -> None:
    earlier = replace(QUIET, **before)
    own = 7.0 if "busy_ticks" in before else 0.0
    assert warnings_between(earlier, replace(LATER, **at_most), own_cpu_seconds=own) == ()
    assert len(warnings_between(earlier, replace(LATER, **over), own_cpu_seconds=own)) == 1


def test_other_programs_are_what_is_left_of_the_busy_time() -> None:
    after = replace(LATER, busy_ticks={0: 8 * TICKS, 1: 5 * TICKS + 4 * TICKS // 10})
    assert warnings_between(QUIET, after, own_cpu_seconds=10.0) == ("other programs used 34% of one CPU",)
    assert warnings_between(QUIET, after, own_cpu_seconds=13.0) == ()


def test_time_that_the_hypervisor_took_is_said() -> None:
    after = replace(LATER, stolen_ticks={0: TICKS, 1: TICKS})
    assert warnings_between(QUIET, after, own_cpu_seconds=0.0) == ("the hypervisor took 20% of one CPU",)


def test_a_clock_below_its_top_under_performance_is_throttling() -> None:
    after = with_policy(LATER, replace(POLICY, ticks={408_000: 500, 2_400_000: 1600}))
    warnings = warnings_between(QUIET, after, own_cpu_seconds=0.0)
    assert warnings == ("throttled: policy0 spent 40% of the time below its top clock",)


def test_under_another_governor_only_busy_cpus_count() -> None:
    before = with_policy(QUIET, replace(POLICY, governor="ondemand"))
    idle = with_policy(LATER, replace(POLICY, governor="ondemand", ticks={408_000: 500, 2_400_000: 1600}))
    busy = replace(idle, busy_ticks={0: 9 * TICKS, 1: 0})
    assert warnings_between(before, idle, own_cpu_seconds=0.0) == ()
    expected = ("policy0 spent 40% of the time below its top clock (governor ondemand)",)
    assert warnings_between(before, busy, own_cpu_seconds=9.0) == expected


def test_without_a_count_of_clocks_the_present_one_speaks() -> None:
    before = with_policy(QUIET, replace(POLICY, ticks=None))
    after = with_policy(LATER, replace(POLICY, ticks=None, current_khz=1_200_000))
    assert warnings_between(before, after, own_cpu_seconds=0.0) == ("throttled: policy0 is at 1200 of 2400 MHz",)


def test_a_policy_that_one_reading_lacks_is_passed_over() -> None:
    slow = replace(POLICY, ticks={408_000: 500, 2_400_000: 1600})
    after = replace(LATER, policies={"new": slow, "uncounted": POLICY, "policy0": slow})
    before = replace(QUIET, policies={"policy0": POLICY, "uncounted": replace(POLICY, ticks=None)})
    warnings = warnings_between(before, after, own_cpu_seconds=0.0)
    assert warnings == ("throttled: policy0 spent 40% of the time below its top clock",)


def test_a_clock_that_had_no_time_before_counts_from_zero() -> None:
    """Ten of a hundred ticks, of which the first reading had none."""
    before = with_policy(QUIET, replace(POLICY, ticks={2_400_000: 1000}))
    after = with_policy(LATER, replace(POLICY, ticks={408_000: 10, 2_400_000: 1090}))
    (warning,) = warnings_between(before, after, own_cpu_seconds=0.0)
    assert "spent 10% of the time" in warning


def test_thermal_events_of_the_cpu_are_counted() -> None:
    before, after = (
        replace(QUIET, throttle_events=3),
        replace(LATER, throttle_events=15, celsius={"x86_pkg_temp": 95.0}),
    )
    assert warnings_between(before, after, own_cpu_seconds=0.0) == ("throttled: the CPU counted 12 thermal events",)


def test_a_changed_governor_is_said_once_for_all_its_policies() -> None:
    policies = {"policy0": POLICY, "policy4": POLICY}
    changed = {name: replace(policy, governor="ondemand") for name, policy in policies.items()}
    warnings = warnings_between(
        replace(QUIET, policies=policies), replace(LATER, policies=changed), own_cpu_seconds=0.0
    )
    assert warnings == ("clock governor changed from performance to ondemand: policy0, policy4",)


def test_heat_swap_memory_and_its_clock() -> None:
    after = replace(
        LATER,
        celsius={"soc-thermal": 71.0, "bigcore0-thermal": 86.4},
        units={"memory": replace(MEMORY, current_hz=528_000_000)},
        swapped_in_pages=100 + 12 * 2**20 // PAGE_BYTES,
        oom_kills=1,
    )
    assert warnings_between(QUIET, after, own_cpu_seconds=0.0) == (
        "the memory clock fell from 2112 to 528 MHz",
        "hot: up to 86 °C (bigcore0-thermal)",
        "swapped 12 MiB in",
        "memory ran out: the kernel killed 1 process",
    )


def with_unit(reading: BoardReading, name: str, clock: UnitClock) -> BoardReading:
    return replace(reading, units={**reading.units, name: clock})


@pytest.mark.parametrize(
    ("before", "after", "warnings"),
    [
        ({}, {"cooling": {"cpufreq-cpu0": 0, "new": 1}}, ("throttled: cooling slowed new from step 0 to 1",)),
        ({"units": {"NPU": replace(NPU, governor=None)}}, {"units": {"NPU": NPU}}, ()),
        ({"units": {"NPU": NPU}}, {"units": {"NPU": replace(NPU, governor=None)}}, ()),
        ({"units": {}}, {}, ()),
        ({}, {"units": {"memory": replace(MEMORY, current_hz=None)}}, ()),
        (
            {"units": {"NPU": NPU}},
            {"units": {"NPU": replace(NPU, governor="ondemand", current_hz=1)}},
            ("clock governor changed from performance to ondemand: NPU",),
        ),
        (
            {"units": {"NPU": replace(NPU, governor="ondemand")}},
            {"units": {"NPU": replace(NPU, current_hz=1)}},
            ("clock governor changed from ondemand to performance: NPU",),
        ),
        ({"throttle_events": 3}, {"throttle_events": 4}, ("throttled: the CPU counted 1 thermal event",)),
        ({}, {"oom_kills": 2}, ("memory ran out: the kernel killed 2 processes",)),
        ({"oom_kills": 5}, {"oom_kills": 4}, ()),
        (
            {"busy_ticks": {0: 5 * TICKS, 1: 0}},
            {"busy_ticks": {0: 0, 1: 3 * TICKS, 2: 99 * TICKS}},
            ("other programs used 30% of one CPU",),
        ),
        ({}, {"at_ns": QUIET.at_ns, "busy_ticks": {0: TICKS}}, ()),
        (
            {},
            {"at_ns": QUIET.at_ns + 500_000_000, "busy_ticks": {0: TICKS, 1: 0}},
            ("other programs used 200% of one CPU",),
        ),
        (
            {},
            {"policies": {"policy0": replace(POLICY, ticks={408_000: 101, 2_400_000: 1000})}},
            ("throttled: policy0 spent 100% of the time below its top clock",),
        ),
        (
            {"units": {"NPU": NPU}},
            {"units": {"GPU": NPU, "NPU": replace(NPU, current_hz=600_000_000)}},
            ("the NPU clock fell from 1000 to 600 MHz",),
        ),
    ],
)
def test_what_is_said_between(before: dict[str, Any], after: dict[str, Any], warnings: tuple[str, ...]) -> None:
    earlier = replace(QUIET, **before)
    assert warnings_between(earlier, replace(LATER, **after), own_cpu_seconds=0.0) == warnings


def recorded(quantity: Quantity, name: str, values: list[float | None]) -> Recording:
    """Beside another sensor, whose readings are not to be mistaken for these."""
    channels = (Channel(quantity, "another", "/sys/a"), Channel(quantity, name, "/sys/b"))
    return Recording(channels=channels, frames=tuple(Frame(n, (1.0, value)) for n, value in enumerate(values)))


def test_a_clock_that_falls_while_pinned_is_said_and_else_only_memorys() -> None:
    after = with_unit(LATER, "NPU", replace(NPU, current_hz=600_000_000))
    assert warnings_between(QUIET, after, own_cpu_seconds=0.0) == ("the NPU clock fell from 1000 to 600 MHz",)
    idle = replace(NPU, governor="rknpu_ondemand")
    before, after = with_unit(QUIET, "NPU", idle), with_unit(LATER, "NPU", replace(idle, current_hz=300_000_000))
    assert warnings_between(before, after, own_cpu_seconds=0.0) == ()


def test_a_clock_that_fell_in_between_is_seen_by_the_sensors() -> None:
    low = recorded("clock", "NPU", [1e9, 1e9, 6e8, None, 7e8])
    expected = ("throttled: the NPU clock was below its top for 50% of the time (down to 600 of 1000 MHz)",)
    assert warnings_between(QUIET, LATER, own_cpu_seconds=0.0, recording=low) == expected
    high = recorded("clock", "NPU", [1e9] * 18 + [9e8, 6e8])
    assert warnings_between(QUIET, LATER, own_cpu_seconds=0.0, recording=high) == ()


def test_parked_memory_is_said_under_any_governor() -> None:
    parked = replace(MEMORY, governor="dmc_ondemand", current_hz=528_000_000)
    before, after = with_unit(QUIET, "memory", parked), with_unit(LATER, "memory", parked)
    low = recorded("clock", "memory", [528e6, 528e6, 528e6, 2112e6])
    assert warnings_between(before, after, own_cpu_seconds=0.0, recording=low) == (
        "the memory clock was below its top for 75% of the time (down to 528 of 2112 MHz, governor dmc_ondemand)",
    )


def test_heat_in_between_counts() -> None:
    peak = recorded("temperature", "npu-thermal", [60.0, 91.6, None, 62.0])
    warnings = warnings_between(QUIET, LATER, own_cpu_seconds=0.0, recording=peak)
    assert warnings == ("hot: up to 92 °C (npu-thermal)",)
    peak = recorded("temperature", "soc-thermal", [60.0, 91.6])
    warnings = warnings_between(QUIET, LATER, own_cpu_seconds=0.0, recording=peak)
    assert warnings == ("hot: up to 92 °C (soc-thermal)",)


def test_cooling_that_slows_is_throttling() -> None:
    after = replace(LATER, cooling={"cpufreq-cpu0": 2})
    expected = "throttled: cooling slowed cpufreq-cpu0 from step 0 to 2"
    assert warnings_between(QUIET, after, own_cpu_seconds=0.0) == (expected,)
    before = replace(QUIET, cooling={"cpufreq-cpu0": 3})
    expected = "throttled: cooling had slowed cpufreq-cpu0 from the beginning, by step 3"
    assert warnings_between(before, after, own_cpu_seconds=0.0) == (expected,)


def test_a_changed_governor_of_the_npu_is_said() -> None:
    after = with_unit(LATER, "NPU", replace(NPU, governor="rknpu_ondemand"))
    expected = "clock governor changed from performance to rknpu_ondemand: NPU"
    assert warnings_between(QUIET, after, own_cpu_seconds=0.0) == (expected,)


@given(
    st.lists(st.none() | st.floats(1, 1e10), max_size=8),
    st.none() | st.integers(0, 10**10),
    st.none() | st.integers(0, 10**10),
    st.sampled_from(["performance", "dmc_ondemand", None]),
)
def test_any_clocks_give_words_and_never_an_error(
    values: list[float | None], current: int | None, top: int | None, governor: str | None
) -> None:
    clock = UnitClock(governor=governor, current_hz=current, top_hz=top)
    after = with_unit(LATER, "memory", clock)
    warnings = warnings_between(
        with_unit(QUIET, "memory", clock), after, own_cpu_seconds=0.0, recording=recorded("clock", "memory", values)
    )
    known = [value for value in values if value is not None]
    low = [value for value in known if value < 0.9 * (top or 0)]
    assert bool(warnings) == bool(low and len(low) > 0.05 * len(known))


def test_what_is_not_counted_is_not_warned_of() -> None:
    nothing = BoardReading(
        at_ns=5,
        busy_ticks={},
        stolen_ticks={},
        policies={},
        celsius={},
        units={},
        cooling={},
        swapped_in_pages=None,
        swapped_out_pages=None,
        oom_kills=None,
        throttle_events=None,
    )
    assert warnings_between(nothing, replace(LATER, swapped_in_pages=10**6), own_cpu_seconds=0.0) == ()
    assert warnings_between(QUIET, replace(nothing, at_ns=LATER.at_ns), own_cpu_seconds=0.0) == ()


@given(st.dictionaries(st.integers(1, 10**7), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1))
def test_the_slowed_part_is_a_part(table: dict[int, tuple[int, int]]) -> None:
    before = with_policy(QUIET, replace(POLICY, ticks={khz: old for khz, (old, _) in table.items()}))
    after = with_policy(LATER, replace(POLICY, ticks={khz: old + more for khz, (old, more) in table.items()}))
    total = sum(more for _, more in table.values())
    slowed = total - table[max(table)][1]
    warned = bool(warnings_between(before, after, own_cpu_seconds=0.0))
    assert warned == (total > 0 and 1 - table[max(table)][1] / total > 0.05)
    assert warned <= (slowed > 0)


def write(root: Path, path: str, text: str) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def stat(busy: int, stolen: int = 0) -> str:
    total = f"cpu  {2 * busy} 0 0 9 0 0 0 0 0 0"
    return f"{total}\ncpu0 {busy} 1 2 9 5 7 7 {stolen} 0 0\ncpu1 {busy} 0 0 9 0 0 0 0 0 0\nctxt 5\n"


def test_a_reading_takes_every_counter(tmp_path: Path) -> None:
    policy = "/sys/devices/system/cpu/cpufreq/policy4"
    others = "cpu2 1 1 1 1 1 1 1\ncpu3 1 1 1 1 1 1 1 1 x\ncpu4 1 2 3 4 5 6 7 8\n"
    write(tmp_path, "/proc/stat", stat(40, stolen=3) + others)
    write(tmp_path, "/proc/vmstat", "nr_free_pages 5\npswpin 7\npswpout 8\noom_kill 1\n")
    write(tmp_path, f"{policy}/related_cpus", "4 5\n")
    write(tmp_path, f"{policy}/scaling_governor", "performance\n")
    write(tmp_path, f"{policy}/scaling_cur_freq", "2352000\n")
    write(tmp_path, f"{policy}/scaling_available_frequencies", "408000 2352000 \n")
    write(tmp_path, f"{policy}/stats/time_in_state", "408000 5\n2352000 70\n")
    for number, (kind, temperature) in enumerate(
        [("soc-thermal", "41615"), ("off", "0"), ("broken", "150000"), ("soc-thermal", "50000"), ("soc-thermal", "1")]
    ):
        write(tmp_path, f"/sys/class/thermal/thermal_zone{number}/type", kind)
        write(tmp_path, f"/sys/class/thermal/thermal_zone{number}/temp", temperature)
    write(tmp_path, "/sys/class/thermal/thermal_zone9/temp", "30000")
    write(tmp_path, "/sys/class/devfreq/dmc/cur_freq", "528000000\n")
    write(tmp_path, "/sys/class/devfreq/dmc/governor", "dmc_ondemand\n")
    write(tmp_path, "/sys/class/devfreq/fdab0000.npu/cur_freq", "1000000000\n")
    write(tmp_path, "/sys/class/devfreq/fdab0000.npu/available_frequencies", "300000000 1000000000\n")
    write(tmp_path, "/sys/class/devfreq/ff000000.bus/cur_freq", "5\n")
    for number, (kind, step) in enumerate([("thermal-cpufreq-0", 3), ("pwm-fan", 2), ("thermal-cpufreq-0", 1)]):
        write(tmp_path, f"/sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
        write(tmp_path, f"/sys/class/thermal/cooling_device{number}/cur_state", f"{step}\n")
    for cpu in (0, 1):
        count = "2\n" if cpu else "none\n"
        write(tmp_path, f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count", count)
        write(tmp_path, f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/package_throttle_count", "5\n")
    reading = BoardReading.take(Machine(tmp_path))
    assert reading.busy_ticks == {0: 43, 1: 40, 4: 6}
    assert reading.stolen_ticks == {0: 3, 1: 0, 4: 8}
    assert reading.policies == {
        "policy4": Policy(
            cpus=(4, 5),
            governor="performance",
            current_khz=2_352_000,
            top_khz=2_352_000,
            ticks={408_000: 5, 2_352_000: 70},
        )
    }
    assert reading.celsius == {"soc-thermal": 50.0, "thermal_zone9": 30.0}
    assert (reading.swapped_in_pages, reading.swapped_out_pages, reading.oom_kills) == (7, 8, 1)
    assert reading.units == {
        "memory": UnitClock(governor="dmc_ondemand", current_hz=528_000_000, top_hz=None),
        "NPU": UnitClock(governor=None, current_hz=1_000_000_000, top_hz=1_000_000_000),
    }
    assert reading.cooling == {"thermal-cpufreq-0": 3, "thermal-cpufreq-0 (cooling_device2)": 1}
    assert reading.throttle_events == 7


@pytest.mark.parametrize("kind", ["core", "package"])
def test_a_cpu_that_counts_only_one_kind_of_event(tmp_path: Path, kind: str) -> None:
    write(tmp_path, f"/sys/devices/system/cpu/cpu0/thermal_throttle/{kind}_throttle_count", "3\n")
    assert BoardReading.take(Machine(tmp_path)).throttle_events == 3


def test_an_empty_machine_gives_an_empty_reading(tmp_path: Path) -> None:
    reading = BoardReading.take(Machine(tmp_path))
    assert (reading.busy_ticks, reading.policies, reading.oom_kills, reading.throttle_events) == ({}, {}, None, None)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["/proc/stat", "/proc/vmstat", f"{FOLDER}/stats/time_in_state", f"{FOLDER}/related_cpus"]),
        st.one_of(
            st.text(max_size=60),
            st.sampled_from(
                [f"cpu0 {'9' * 5000} 0 0 0 0 0 0 0", "cpu² 1 1 1 1 1 1 1 1", f"oom_kill {'9' * 5000}", "1 2"]
            ),
        ),
    )
)
def test_garbled_counters_give_a_reading_all_the_same(files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            place = Path(f"{root}{path}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text.encode("utf-8", "surrogatepass"))
        reading = BoardReading.take(Machine(Path(root)))
        assert isinstance(warnings_between(reading, BoardReading.take(Machine(Path(root))), own_cpu_seconds=0.0), tuple)


def test_load_on_this_machine_is_background_unless_it_is_our_own() -> None:
    before, deadline = BoardReading.take(), time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass
    after = BoardReading.take()
    busy_seconds = (sum(after.busy_ticks.values()) - sum(before.busy_ticks.values())) / TICKS
    assert any("other programs used" in text for text in warnings_between(before, after, own_cpu_seconds=0.0))
    own = warnings_between(before, after, own_cpu_seconds=busy_seconds)
    assert not any("other programs used" in text for text in own)


@pytest.mark.parametrize(
    ("busy", "limit_seconds", "used"),
    [
        ([4], 0.25, None),
        ([5], 0.25, "0.25 s: other programs used 10%"),
        ([50, 5, 4, 50], 60, None),
        ([50, 25, 6], 0.75, "0.75 s: other programs used 12%"),
        ([25], 0, "0 s: other programs used 50%"),
        ([25, 50], 0.7, "0.7 s: other programs used 100%"),
    ],
)
def test_settle_looks_at_one_window_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: list[int], limit_seconds: float, used: str | None
) -> None:
    """`busy` are the ticks of both CPUs together in each quarter of a second, of which 50 are all; one is stolen."""
    elapsed_ns, total, windows = 10**9, 0, list(busy)

    def write_stat() -> None:
        write(tmp_path, "/proc/stat", f"cpu0 {total} 0 0 9 0 0 0 {total * 9} 0 0\ncpu1 7 0 0 9 0 0 0 0 0 0\n")

    async def pass_time(seconds: float) -> None:
        nonlocal elapsed_ns, total
        assert seconds == 0.25
        elapsed_ns += int(seconds * 1e9)
        total += windows.pop(0)
        write_stat()

    monkeypatch.setattr(asyncio, "sleep", pass_time)
    monkeypatch.setattr(time, "monotonic_ns", lambda: elapsed_ns)
    write_stat()
    warnings = asyncio.run(settle(Machine(tmp_path), limit_seconds=limit_seconds))
    assert warnings == (() if used is None else (f"not idle after {used} of all CPUs",))
    assert windows == busy[busy.index(4) + 1 if 4 in busy else len(busy) :]


def test_settle_returns_at_the_first_idle_window(tmp_path: Path) -> None:
    write(tmp_path, "/proc/stat", stat(100))
    started = time.monotonic()
    assert asyncio.run(settle(Machine(tmp_path), limit_seconds=60)) == ()
    assert time.monotonic() - started < 30
    assert asyncio.run(settle(Machine(tmp_path), limit_seconds=0.25)) == ()


def test_settle_waits_for_a_machine_that_will_be_idle(tmp_path: Path) -> None:
    assert asyncio.run(settle_under(tmp_path, lambda seconds: stat(int(min(seconds, 0.6) * TICKS)), 60)) == ()


def test_settle_counts_all_cpus(tmp_path: Path) -> None:
    """One busy CPU of twenty is an idle machine."""

    def stat_of_twenty(seconds: float) -> str:
        idle = "".join(f"cpu{number} 0 0 0 9 0 0 0 0 0 0\n" for number in range(1, 20))
        return f"cpu0 {int(seconds * TICKS)} 0 0 9 0 0 0 0 0 0\n{idle}"

    assert asyncio.run(settle_under(tmp_path, stat_of_twenty)) == ()


def test_settle_gives_up_and_says_how_busy_it_was(tmp_path: Path) -> None:
    (warning,) = asyncio.run(settle_under(tmp_path, lambda seconds: stat(int(seconds * TICKS))))
    assert warning.startswith("not idle after 0.5 s: other programs used ")
    assert warning.endswith("% of all CPUs")


async def settle_under(root: Path, load: Callable[[float], str], limit_seconds: float = 0.5) -> tuple[str, ...]:
    """`load` gives /proc/stat after so many seconds."""

    async def write_on() -> None:
        started = time.monotonic()
        while True:
            write(root, "/proc/stat.next", load(time.monotonic() - started))
            (root / "proc/stat.next").rename(root / "proc/stat")
            await asyncio.sleep(0.005)

    write(root, "/proc/stat", load(0.0))
    loader = asyncio.create_task(write_on())
    try:
        return await settle(Machine(root), limit_seconds=limit_seconds)
    finally:
        loader.cancel()


def test_settle_says_when_it_cannot_tell(tmp_path: Path) -> None:
    (warning,) = asyncio.run(settle(Machine(tmp_path), limit_seconds=5))
    assert "/proc/stat cannot be read" in warning


@pytest.mark.parametrize("limit_seconds", [0.0, 0.3])
def test_settle_keeps_its_limit_on_this_machine(limit_seconds: float) -> None:
    started = time.monotonic()
    asyncio.run(settle(limit_seconds=limit_seconds))
    assert time.monotonic() - started < 20

"""Sensors beside the figures. Every log here is made up: no board and no meter was at hand."""

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample, SensorLog, SensorValues, Test
from trilithon.results.compare import summarise
from trilithon.results.conditions import Conditions, condition_lines, conditions_of
from trilithon.results.formats import export_campaigns, import_campaigns
from trilithon.results.report.page import render_report
from trilithon.results.store.database import Store
from trilithon.results.table import render_csv, render_jsonl, render_markdown, render_terminal

SECOND = 10**9
TG = Test(kind="tg", generated_tokens=40)
PP = Test(kind="pp", prompt_tokens=100)
NAME = "llama.cpp/cpu"
# 0 to 20 s: the prompt is read from 2 to 6 s, 40 tokens are generated from 10 to 18 s.
AT = tuple(range(0, 20 * SECOND + 1, SECOND // 4))
SAMPLES = (
    Sample(test=PP, started_ns=2 * SECOND, finished_ns=6 * SECOND, prompt_evaluated=100, prompt_ns=4 * SECOND),
    Sample(test=TG, started_ns=10 * SECOND, finished_ns=18 * SECOND, decode_steps=40, decode_ns=8 * SECOND),
)


def sensor(quantity: str, name: str, values: list[float | None], source: str = "/sys/x") -> SensorValues:
    return SensorValues(quantity=quantity, name=name, unit="", source=source, values=tuple(values))


def within(start: float, end: float, inside: float, outside: float) -> list[float | None]:
    return [inside if start * SECOND <= at_ns <= end * SECOND else outside for at_ns in AT]


def log(*more: SensorValues) -> SensorLog:
    sensors = (
        sensor("temperature", "soc-thermal", within(10, 18, 71.5, 45.0)),
        sensor("temperature", "npu-thermal", within(19, 20, 99.0, 40.0)),  # hot only when nothing was measured
        sensor("clock", "cpu4-7", within(14, 15, 1608e6, 2208e6)),
        sensor("clock", "cpu0-3", [408e6 for _ in AT]),
        sensor("clock", "memory", within(3, 4, 528e6, 2112e6)),
        sensor("load", "cpu4-7", [1.0 for _ in AT], "/proc/stat"),
        sensor("load", "cpu0-3", [0.02 for _ in AT], "/proc/stat"),
        *more,
    )
    return SensorLog(at_ns=AT, sensors=sensors)


METER = sensor("power", "VDD_IN", within(2, 6, 8.0, 5.0))


def campaign(*logs: SensorLog | None) -> Campaign:
    runs = tuple(
        Run(
            placement=NAME,
            round=number,
            outcome="finished",
            started_ns=0,
            finished_ns=20 * SECOND,
            samples=SAMPLES,
            sensor_log=each,
        )
        for number, each in enumerate(logs)
    )
    record = PlacementRecord(
        name=NAME, engine="", build="", build_version="", unit="cpu", model={"name": "m"}, settings={}, must_match={}
    )
    return Campaign(
        id=1,
        started="2026-11-22T10:00:00+00:00",
        status="finished",
        source="trilithon",
        version="0",
        board={},
        plan={},
        placements=(record,),
        runs=runs,
    )


def test_a_load_tells_of_all_frames_since_the_load_before() -> None:
    """CPU loads are read with each fourth frame: a low clock between two of them is not lost."""
    known: list[float | None] = [1.0 if number % 4 == 0 else None for number in range(len(AT))]
    low = within(14.25, 14.5, 1200e6, 2208e6)
    seldom = SensorLog(
        at_ns=AT, sensors=(sensor("clock", "cpu4-7", low), sensor("load", "cpu4-7", known, "/proc/stat"))
    )
    assert conditions_of(campaign(seldom), NAME, TG).clocks_min_hz == {"cpu4-7": 1200e6}
    idle = SensorLog(
        at_ns=AT,
        sensors=(
            sensor("clock", "cpu4-7", low),
            sensor("load", "cpu4-7", [value and 0.1 for value in known], "/proc/stat"),
        ),
    )
    assert conditions_of(campaign(idle), NAME, TG).clocks_min_hz == {}


def test_only_what_was_while_it_was_measured_counts() -> None:
    found = conditions_of(campaign(log()), NAME, TG)
    assert found == Conditions(
        celsius_max=71.5, hottest="soc-thermal", clocks_min_hz={"cpu4-7": 1608e6, "memory": 2112e6}
    )
    found = conditions_of(campaign(log()), NAME, PP)
    assert found is not None
    assert (found.celsius_max, found.clocks_min_hz) == (45.0, {"cpu4-7": 2208e6, "memory": 528e6})


def alone(*sensors: SensorValues, test: Test = TG) -> Conditions:
    conditions = conditions_of(campaign(SensorLog(at_ns=AT, sensors=sensors)), NAME, test)
    assert conditions is not None
    return conditions


def test_the_hottest_moment_of_the_hottest_zone_counts() -> None:
    warmer = sensor("temperature", "a", within(12, 13, 60.0, 40.0))
    colder = sensor("temperature", "b", within(12, 13, 30.0, 50.0))
    unknown = sensor("temperature", "c", [None for _ in AT])
    assert (alone(warmer, colder, unknown).celsius_max, alone(colder, warmer).hottest) == (60.0, "a")
    assert alone(unknown) == Conditions()
    frost = sensor("temperature", "d", within(10, 18, -7.0, -9.0))
    assert (alone(frost).celsius_max, alone(frost).hottest) == (-7.0, "d")


def test_a_test_between_two_frames_has_the_next_one() -> None:
    """A sample of 0.1 s with frames every 0.25 s."""
    short = replace(SAMPLES[1], started_ns=10 * SECOND + 1, finished_ns=10 * SECOND + SECOND // 10)
    hot = [float(number) for number in range(len(AT))]
    whole = campaign(SensorLog(at_ns=AT, sensors=(sensor("temperature", "soc", hot),)))
    whole = replace(whole, runs=(replace(whole.runs[0], samples=(short,)),))
    conditions = conditions_of(whole, NAME, TG)
    assert conditions is not None
    assert conditions.celsius_max == 41.0  # frame 40 is at 10 s
    late = replace(short, started_ns=AT[-1] + 1, finished_ns=AT[-1] + 2)
    assert conditions_of(replace(whole, runs=(replace(whole.runs[0], samples=(late,)),)), NAME, TG) == Conditions()


@pytest.mark.parametrize(("load", "counts"), [(0.5, True), (0.49, False), (None, False)])
def test_a_clock_counts_while_its_cluster_was_half_used(load: float | None, counts: bool) -> None:
    clock, used = sensor("clock", "cpu", [5e8 for _ in AT]), sensor("load", "cpu", [load for _ in AT], "/proc/stat")
    assert alone(clock, used).clocks_min_hz == ({"cpu": 5e8} if counts else {})
    assert alone(clock, replace(used, source="/sys/x")).clocks_min_hz == {"cpu": 5e8}


def test_one_line_per_placement_over_its_tests() -> None:
    first = Conditions(celsius_max=50.0, hottest="a", clocks_min_hz={"cpu": 2e9, "gpu": 5e8}, meter="")
    second = Conditions(celsius_max=60.0, hottest="b", clocks_min_hz={"cpu": 1e9, "gpu": 6e8}, meter="")
    metered = Conditions(joules_per_prompt_token=0.5, joules_per_generated_token=2.0, meter="VDD")
    rows = [("x", PP, first), ("y", PP, metered), ("x", TG, second), ("z", TG, Conditions())]
    assert condition_lines(rows) == [
        "x: up to 60.0 °C (b); clocks down to cpu 1000 MHz, gpu 500 MHz",
        "y: pp100 0.500 J per prompt token (VDD); pp100 2.00 J per generated token (VDD)",
    ]
    assert condition_lines([]) == []


def test_energy_per_token_is_the_median_over_runs() -> None:
    logs = [log(replace(METER, values=tuple((value or 0) * times for value in METER.values))) for times in (1, 1.1, 3)]
    decode, prefill = (conditions_of(campaign(*logs), NAME, test) for test in (TG, PP))
    assert decode is not None
    assert prefill is not None
    assert decode.joules_per_generated_token == pytest.approx(5 * 8 / 40 * 1.1)
    assert prefill.joules_per_prompt_token == pytest.approx(8 * 4 / 100 * 1.1)
    assert (decode.joules_per_prompt_token, prefill.joules_per_generated_token) == (None, None)
    assert decode.meter == prefill.meter == "VDD_IN"


def test_all_runs_are_held_against_one_meter() -> None:
    """A battery that was taken off the mains in the second run tells more, and something else."""
    battery = sensor("power", "BAT0", [20.0 for _ in AT])
    found = conditions_of(campaign(log(METER), log(METER, battery), log(battery)), NAME, TG)
    assert found is not None
    assert found.meter == "VDD_IN"
    assert found.joules_per_generated_token == pytest.approx(1.0)


def test_nothing_recorded_is_nothing_told() -> None:
    assert conditions_of(campaign(None), NAME, TG) is None
    assert conditions_of(campaign(), NAME, TG) is None
    assert [row.conditions for row in summarise(campaign(None))] == [None, None]


def test_a_failed_run_is_no_witness() -> None:
    whole = campaign(log(METER))
    failed = replace(whole, runs=(replace(whole.runs[0], outcome="failed"),))
    assert conditions_of(failed, NAME, TG) is None


def test_a_line_per_placement() -> None:
    rows = summarise(campaign(log(METER)))
    (line,) = condition_lines([(row.placement, row.test, row.conditions) for row in rows if row.conditions])
    assert line == (
        "llama.cpp/cpu: up to 71.5 °C (soc-thermal); clocks down to cpu4-7 1608 MHz, memory 528 MHz;"
        " pp100 0.320 J per prompt token (VDD_IN); tg40 1.00 J per generated token (VDD_IN)"
    )
    for text in (render_terminal(rows, width=200, colour=False), render_markdown(rows)):
        assert "up to 71.5 °C" in text
        assert "1.00 J per generated token" in text
    assert "up to 71.5 °C" in render_report(campaign(log(METER)), rows, "", (), ())
    assert "sensors told" not in render_report(campaign(None), summarise(campaign(None)), "", (), ())
    assert "up to" not in render_terminal(summarise(campaign(None)), width=200, colour=False)


def test_the_figures_for_programs() -> None:
    rows = summarise(campaign(log(METER)))
    prefill, decode = (json.loads(line) for line in render_jsonl(rows).splitlines())
    assert decode["celsius_max"] == 71.5
    assert decode["clocks_min"] == "cpu4-7 1608 MHz, memory 2112 MHz"
    assert (decode["joules_per_prompt_token"], decode["joules_per_generated_token"]) == (None, pytest.approx(1.0))
    assert prefill["joules_per_prompt_token"] == pytest.approx(0.32)
    assert decode["meter"] == "VDD_IN"
    (bare, _) = csv.DictReader(StringIO(render_csv(summarise(campaign(None)))))
    assert [bare[name] for name in ("celsius_max", "clocks_min", "joules_per_generated_token", "meter")] == [""] * 4


def test_a_log_survives_the_database_and_an_export(tmp_path: Path) -> None:
    original = campaign(log(METER, sensor("power", "x", [None for _ in AT])), None)
    with Store.open(tmp_path / "results.sqlite") as store:
        assert store.campaign(store.add(original)) == replace(original, id=1)
    (again,) = import_campaigns(export_campaigns([original], "trilithon").text.encode(), "export")
    assert again == original


logs = st.builds(
    SensorLog,
    at_ns=st.lists(st.integers(0, 2**62), max_size=6).map(tuple),
    sensors=st.lists(
        st.builds(
            SensorValues,
            quantity=st.sampled_from(["temperature", "clock", "load", "power", "energy", "magic"]),
            name=st.sampled_from(["a", "b"]),
            unit=st.just(""),
            source=st.sampled_from(["/proc/stat", ""]),
            values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=6).map(tuple),
        ),
        max_size=5,
    ).map(tuple),
)


@given(st.lists(st.none() | logs, max_size=3))
def test_any_imported_log_gives_a_table(found: list[SensorLog | None]) -> None:
    rows = summarise(campaign(*found))
    assert render_markdown(rows).count("\n") >= 2
    render_jsonl(rows)

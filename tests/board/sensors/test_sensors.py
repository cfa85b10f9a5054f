"""Sensors on constructed trees and on this machine.

No board and no power meter was at hand: NPU load, RAPL, INA monitors and batteries are files that these tests write,
in the forms that the kernel's documentation and drivers give.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.board.sensors import sensors as module
from trilithon.board.sensors.meters import EnergyCounter
from trilithon.board.sensors.probes import PLAUSIBLE, UNITS, Probe, Reading
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.sensors import Sensors, parse_npu_load, probes, readings
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]

NPU_LOAD = "/sys/kernel/debug/rknpu/load"
BUFINFO = "/sys/kernel/debug/dma_buf/bufinfo"
RAPL = "/sys/class/powercap/intel-rapl:0"
HWMON = "/sys/class/hwmon/hwmon0"
BATTERY = "/sys/class/power_supply/BAT0"
ZONE = "/sys/class/thermal/thermal_zone0"


def tree(root: Path, files: Mapping[str, str | bytes]) -> Machine:
    for path, content in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Machine(root)


def read_all(machine: Machine, frames: int = 1) -> dict[tuple[str, str], Reading]:
    """What the last of so many frames has."""
    with Sensors(machine) as sensors:
        for _ in range(frames):
            frame = sensors.read()
        return {(each.quantity, each.name): each for each in readings(sensors.channels, frame)}


def value(machine: Machine, quantity: str, name: str) -> float | None:
    found = read_all(machine).get((quantity, name))
    return None if found is None else found.value


def plausible(reading: Reading) -> bool:
    least, most = PLAUSIBLE[reading.quantity]
    return least <= reading.value <= most


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- a board


def test_an_rk3588_tells_all_that_it_has(plant: Plant) -> None:
    load = {NPU_LOAD: "NPU load:  Core0: 12%, Core1:  0%, Core2:  3%,\n"}
    cma = (
        "MemAvailable: 8 kB\nAnonPages: 4 kB\nBuffers: 1 kB\nCached: 7 kB\nShmem: 2 kB\nCmaTotal: 9 kB\nCmaFree: 4 kB\n"
    )
    buffers = {BUFINFO: "Dma-buf Objects:\nsize\tflags\n\nTotal 3 objects, 25165824 bytes\n"}
    found = read_all(plant("rk3588_vendor", files=load | buffers | {"/proc/meminfo": cma}))
    values = {key: reading.value for key, reading in found.items()}
    assert values[("temperature", "bigcore0-thermal")] == pytest.approx(42.538)
    assert values[("clock", "cpu0-3")] == 1.008e9
    assert values[("clock", "cpu4-5")] == values[("clock", "cpu6-7")] == 408e6
    assert values[("clock", "NPU")] == 1e9
    assert values[("clock", "GPU")] == 300e6
    assert values[("clock", "memory")] == 528e6
    assert [values[("load", f"NPU core {core}")] for core in range(3)] == [0.12, 0.0, 0.03]
    memory = {name: count for (quantity, name), count in values.items() if quantity == "memory"}
    assert memory == {
        "available": 8192,
        "anonymous": 4096,
        "page cache": 6 * 1024,
        "shared": 2048,
        "CMA": 5 * 1024,
        "DMA buffers": 25165824,
    }
    assert not any(quantity in ("power", "energy") for quantity, _ in found)


@pytest.mark.parametrize("name", sorted(each.stem for each in (Path(__file__).parents[1] / "trees").glob("*.toml")))
def test_every_tree_gives_plausible_readings(plant: Plant, name: str) -> None:
    found = read_all(plant(name), frames=2).values()
    assert {reading.quantity for reading in found} >= {"memory"}
    assert all(plausible(reading) for reading in found)


def test_a_throttled_board_shows_it(plant: Plant) -> None:
    found = read_all(plant("rk3588_throttled"))
    assert max(each.value for each in found.values() if each.quantity == "temperature") >= 75
    assert min(each.value for key, each in found.items() if key[0] == "clock" and key[1].startswith("cpu")) < 1.8e9


def test_each_reading_has_its_unit_and_the_file_it_came_from(plant: Plant) -> None:
    machine = plant("rk3588_vendor")
    for reading in read_all(machine).values():
        assert reading.unit == UNITS[reading.quantity]
        assert all(machine.readable(path) for path in reading.source.split(", "))


def test_the_files_that_wake_the_npu_are_never_read(plant: Plant) -> None:
    machine = plant("rk3588_vendor", files={"/sys/kernel/debug/rknpu/freq": "1000000000\n", NPU_LOAD: "NPU load: 1%"})
    paths = [path for probe in probes(machine) for path in probe.paths]
    assert NPU_LOAD in paths
    assert not any(path.endswith(("rknpu/freq", "rknpu/volt")) for path in paths)


def test_absent_is_absent(tmp_path: Path) -> None:
    with Sensors(Machine(tmp_path)) as sensors:
        assert sensors.channels == ()
        assert sensors.closed == []
        assert sensors.read().values == ()


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        (b"NPU load:  Core0: 12%, Core1:  0%, Core2: 100%,\n", {"NPU core 0": 0.12, "NPU core 1": 0, "NPU core 2": 1}),
        (b"NPU load:  Core0:  7%, Core1: 50%,", {"NPU core 0": 0.07, "NPU core 1": 0.5}),
        (b"NPU load:  12%\n", {"NPU": 0.12}),
        (b"NPU load: 0%", {"NPU": 0.0}),
    ],
)
def test_the_load_of_the_npu_in_each_of_its_forms(text: bytes, loads: dict[str, float]) -> None:
    assert parse_npu_load(text) == loads


@pytest.mark.parametrize("text", [b"", b"NPU load:", b"on", b"\xff\x00"])
def test_what_is_no_load_of_the_npu(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a load"):
        parse_npu_load(text)


def test_load_by_devfreq_for_gpu_and_memory_but_not_the_npu_s_stub(plant: Plant) -> None:
    names = {"fb000000.gpu": "31@300000000Hz\n", "dmc": "9@528000000Hz", "fdab0000.npu": "50@1000000000Hz"}
    found = read_all(plant("rk3588_vendor", files={f"/sys/class/devfreq/{n}/load": t for n, t in names.items()}))
    assert found[("load", "GPU")].value == 0.31
    assert found[("load", "memory")].value == 0.09
    assert ("load", "NPU") not in found


def test_use_of_the_cpus_per_cluster_between_two_frames(plant: Plant) -> None:
    machine = plant("rk3588_vendor")
    stat = Path(machine.root, "proc/stat")
    with Sensors(machine) as sensors:
        first = {reading.name for reading in readings(sensors.channels, sensors.read()) if reading.quantity == "load"}
        assert first == set()  # nothing to compare with
        # cpu4 worked 30 ticks of 40, cpu5 idled 40, the others did nothing at all.
        text = stat.read_text().replace("cpu4 100 10 20 1000 1", "cpu4 130 10 20 1010 1")
        stat.write_text(text.replace("cpu5 100 10 20 1000 1", "cpu5 100 10 20 1030 11"))
        told = readings(sensors.channels, sensors.read())
    loads = {reading.name: reading.value for reading in told if reading.quantity == "load"}
    assert loads["cpu4-5"] == pytest.approx(30 / 80)
    assert loads.keys() == {"cpu4-5"}


def test_a_pc_with_a_clock_per_cpu_shows_its_clusters(tmp_path: Path) -> None:
    cpus = range(16)
    policy = "/sys/devices/system/cpu/cpufreq/policy"
    files = {f"{policy}{cpu}/related_cpus": f"{cpu}\n" for cpu in cpus}
    files |= {f"{policy}{cpu}/scaling_cur_freq": f"{800000 + cpu}\n" for cpu in cpus}
    files |= {"/proc/cpuinfo": "".join(f"processor\t: {cpu}\n\n" for cpu in cpus)}
    files |= {"/sys/devices/system/cpu/online": "0-15\n", f"{HWMON}/name": "k10temp\n", f"{HWMON}/temp1_input": "51250"}
    found = read_all(tree(tmp_path, files))
    assert {name: reading.value for (quantity, name), reading in found.items() if quantity == "clock"} == {
        "cpu0-15": 800015e3
    }
    assert found[("temperature", "k10temp")].value == 51.25


def test_zones_of_one_type_are_told_apart(tmp_path: Path) -> None:
    zones = {f"/sys/class/thermal/thermal_zone{n}/{file}": text for n in range(2) for file, text in ZONE_FILES.items()}
    names = [name for _, name in read_all(tree(tmp_path, zones))]
    assert names == ["soc-thermal", "soc-thermal (thermal_zone1)"]


ZONE_FILES = {"type": "soc-thermal\n", "temp": "40000\n"}


@pytest.mark.parametrize("millidegrees", ["-40000", "0", "200000", "-1", "150000", "99999999999999999999", "", "hot"])
def test_a_temperature_that_cannot_be_is_absent(tmp_path: Path, millidegrees: str) -> None:
    machine = tree(tmp_path, {f"{ZONE}/type": "gpu-thermal", f"{ZONE}/temp": f"{millidegrees}\n"})
    assert read_all(machine) == {}


def test_a_zone_that_is_off_comes_back(tmp_path: Path) -> None:
    machine = tree(tmp_path, {f"{ZONE}/type": "gpu-thermal", f"{ZONE}/temp": "-40000\n"})
    with Sensors(machine) as sensors:
        for _ in range(9):
            assert sensors.read().values == (None,)
        tree(tmp_path, {f"{ZONE}/temp": "45000\n"})
        assert sensors.read().values == (45.0,)


# -- meters


def test_rapl_counts_from_the_first_frame_and_over_its_range(tmp_path: Path) -> None:
    files = {f"{RAPL}/name": "package-0\n", f"{RAPL}/max_energy_range_uj": "1000000\n", f"{RAPL}/energy_uj": "900000\n"}
    core = {f"{RAPL}:0/name": "core\n", f"{RAPL}:0/max_energy_range_uj": "1000000\n", f"{RAPL}:0/energy_uj": "5\n"}
    machine = tree(tmp_path, files | core)
    told = []
    with Sensors(machine) as sensors:
        for microjoules in (900_000, 950_000, 10_000, 30_000):
            tree(tmp_path, {f"{RAPL}/energy_uj": f"{microjoules}\n"})
            time.sleep(0.002)
            told.append(sensors.read().values)
        assert [channel.name for channel in sensors.channels] == ["package-0", "package-0 core"]
        assert sensors.channels[0].source == f"{RAPL}/energy_uj"
    assert told == [(0.0, 0.0), (pytest.approx(0.05), 0.0), (pytest.approx(0.11), 0.0), (pytest.approx(0.13), 0.0)]


def test_packages_are_added_and_the_second_way_to_the_same_counters_is_not(tmp_path: Path) -> None:
    files = {}
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        folder = f"/sys/class/powercap/{zone}"
        files |= {f"{folder}/name": name, f"{folder}/energy_uj": "7", f"{folder}/max_energy_range_uj": "100"}
    (channel,) = Sensors(tree(tmp_path, files)).channels
    assert channel.name == "packages"
    assert channel.source.count("energy_uj") == 2


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**5)), min_size=1, max_size=20),
    st.integers(10**6, 10**7),
)
def test_a_counter_that_wraps_adds_up(steps: list[tuple[int, int]], range_microjoules: int) -> None:
    counter = EnergyCounter("package-0", [range_microjoules])
    raw, total, at_ns = steps[0][0], 0, 0
    assert counter([b"%d\n" % raw], at_ns) == {"package-0": 0.0}
    for _, step in steps:
        total += step
        at_ns += 10**9
        assert counter([b"%d\n" % ((raw + total) % range_microjoules)], at_ns)["package-0"] == pytest.approx(
            total / 1e6
        )


@pytest.mark.parametrize("range_microjoules", [None, 0, 2**62])
def test_a_counter_that_was_set_back_is_not_believed_any_more(range_microjoules: int | None) -> None:
    """Without a range, or with one over which it cannot have come: that would be more than any machine draws."""
    counter = EnergyCounter("energy1", [range_microjoules])
    counter([b"5000"], 0)
    for second in range(1, 3):
        with pytest.raises(ValueError, match="set back"):
            counter([b"%d" % (second * 10)], second * 10**9)


def test_an_ina226_tells_its_power(tmp_path: Path) -> None:
    files = {
        "name": "ina226",
        "power1_input": "7125000\n",
        "curr1_input": "1425",
        "in1_input": "5000",
        "in0_input": "1",
    }
    found = read_all(tree(tmp_path, {f"{HWMON}/{file}": text for file, text in files.items()}))
    assert [(key, reading.value) for key, reading in found.items()] == [(("power", "ina226 power1"), 7.125)]
    assert found[("power", "ina226 power1")].source == f"{HWMON}/power1_input"


def test_an_ina3221_tells_current_and_voltage_of_each_rail(tmp_path: Path) -> None:
    files = {"name": "ina3221", "in1_label": "VDD_IN", "curr1_input": "1500\n", "in1_input": "5000\n"}
    files |= {"in2_label": "VDD_CPU", "curr2_input": "-8", "in2_input": "5000", "curr3_input": "4"}
    found = read_all(tree(tmp_path, {f"{HWMON}/{file}": text for file, text in files.items()}))
    # The second rail's power is negative, which no load is; the third has no voltage.
    assert [(key, reading.value) for key, reading in found.items()] == [(("power", "ina3221 VDD_IN"), 7.5)]
    assert found[("power", "ina3221 VDD_IN")].source == f"{HWMON}/curr1_input, {HWMON}/in1_input"


def test_other_chips_current_and_voltage_are_not_of_one_rail(tmp_path: Path) -> None:
    files = {"name": "it8728", "curr1_input": "1500\n", "in1_input": "5000\n"}
    assert read_all(tree(tmp_path, {f"{HWMON}/{file}": text for file, text in files.items()})) == {}


def test_average_power_stands_in_where_there_is_no_other(tmp_path: Path) -> None:
    files = {"name": "amdgpu", "power1_average": "31000000", "power1_label": "PPT"}
    machine = tree(tmp_path, {f"{HWMON}/{file}": text for file, text in files.items()})
    assert value(machine, "power", "amdgpu PPT") == 31.0


def test_energy_counters_of_hwmon(tmp_path: Path) -> None:
    files = {"name": "amd_energy", "energy1_input": "1000000", "energy1_label": "Esocket0"}
    machine = tree(tmp_path, {f"{HWMON}/{file}": text for file, text in files.items()})
    with Sensors(machine) as sensors:
        tree(tmp_path, {f"{HWMON}/energy1_input": "1000123\n"})
        assert sensors.read().values == (pytest.approx(0.000123),)
        assert sensors.channels[0].unit == "joules"


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"power_now": "11200000\n"}, 11.2),
        ({"current_now": "-1000000", "voltage_now": "7400000"}, 7.4),
        ({"current_now": "1000000", "voltage_now": "7400000"}, 7.4),
        ({"current_now": "1000000"}, None),
        ({"power_now": "99000000000"}, None),
    ],
)
def test_a_battery_tells_the_power_only_while_it_gives_it(
    tmp_path: Path, files: dict[str, str], watts: float | None
) -> None:
    state = {"type": "Battery\n", "status": "Discharging\n"}
    machine = tree(tmp_path, {f"{BATTERY}/{file}": text for file, text in (state | files).items()})
    assert value(machine, "power", "BAT0") == (None if watts is None else pytest.approx(watts))
    tree(tmp_path, {f"{BATTERY}/status": "Charging\n"})
    assert value(machine, "power", "BAT0") is None


def test_a_mains_adapter_is_no_battery(tmp_path: Path) -> None:
    machine = tree(
        tmp_path, {f"{BATTERY}/type": "Mains", f"{BATTERY}/power_now": "5", f"{BATTERY}/status": "Discharging"}
    )
    assert read_all(machine) == {}


# -- files that are not as they should be


def test_a_file_that_starts_to_fail_is_dropped_and_closed(tmp_path: Path) -> None:
    before = open_files()
    machine = tree(tmp_path, {f"{ZONE}/type": "soc-thermal", f"{ZONE}/temp": "40000\n"})
    with Sensors(machine) as sensors:
        assert sensors.read().values == (40.0,)
        tree(tmp_path, {f"{ZONE}/temp": ""})
        for _ in range(4):
            assert sensors.read().values == (None,)
        assert open_files() == before
        tree(tmp_path, {f"{ZONE}/temp": "41000\n"})
        assert sensors.read().values == (None,)


def test_one_failure_is_forgiven(tmp_path: Path) -> None:
    machine = tree(tmp_path, {f"{ZONE}/type": "soc-thermal", f"{ZONE}/temp": "40000\n"})
    with Sensors(machine) as sensors:
        for _ in range(3):
            tree(tmp_path, {f"{ZONE}/temp": ""})
            assert sensors.read().values == (None,)
            tree(tmp_path, {f"{ZONE}/temp": "41000\n"})
            assert sensors.read().values == (41.0,)


def test_pipes_folders_and_dangling_links_are_no_sensors(tmp_path: Path) -> None:
    folder = tmp_path / ZONE.lstrip("/")
    folder.mkdir(parents=True)
    os.mkfifo(folder / "temp")
    (folder.parent / "thermal_zone1/temp").mkdir(parents=True)
    (folder.parent / "thermal_zone2").mkdir()
    (folder.parent / "thermal_zone2/temp").symlink_to("nowhere")
    assert read_all(Machine(tmp_path)) == {}


def test_what_this_user_may_not_read_is_named(tmp_path: Path) -> None:
    files = {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": "5", f"{RAPL}/max_energy_range_uj": "10"}
    machine = tree(tmp_path, files)
    place = tmp_path / RAPL.lstrip("/") / "energy_uj"
    place.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o1000:  # the folder of all temporary files, which is open to everybody
            break
        folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with Sensors(machine) as sensors:
            assert sensors.channels == ()
            assert sensors.closed == [f"{RAPL}/energy_uj"]
    finally:
        if root:
            os.seteuid(0)


FILES = (
    f"{ZONE}/type",
    f"{ZONE}/temp",
    "/sys/devices/system/cpu/cpufreq/policy0/related_cpus",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",
    "/sys/devices/system/cpu/online",
    "/sys/class/devfreq/dmc/cur_freq",
    "/sys/class/devfreq/dmc/load",
    "/sys/class/devfreq/fdab0000.npu/cur_freq",
    NPU_LOAD,
    BUFINFO,
    "/proc/stat",
    "/proc/meminfo",
    "/proc/cpuinfo",
    f"{RAPL}/name",
    f"{RAPL}/energy_uj",
    f"{RAPL}/max_energy_range_uj",
    f"{HWMON}/name",
    f"{HWMON}/power1_input",
    f"{HWMON}/power1_label",
    f"{HWMON}/curr2_input",
    f"{HWMON}/in2_input",
    f"{HWMON}/energy1_input",
    f"{BATTERY}/type",
    f"{BATTERY}/status",
    f"{BATTERY}/power_now",
)
pieces = st.sampled_from(
    b"package-0|ina3221|Battery|Discharging|NPU load:|Core0: 7%|12@5Hz|cpu0 1 2 3 4 5 6 7|MemAvailable: 12 kB\n|"
    b"AnonPages: -1 kB|Total 3 objects, 9 bytes|\nintr|\ncpu|-40000|0-7|1|\n| |\0|\xff\xfe|-|1e9|0x10".split(b"|")
) | st.just(b"9" * 5000)
contents = (
    st.binary(max_size=60)
    | st.lists(pieces, max_size=8).map(b"".join)
    | st.integers(-(2**70), 2**70).map(b"%d".__mod__)
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(FILES), contents), st.dictionaries(st.sampled_from(FILES), contents))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_of_any_file_gives_plausible_readings_or_none(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], later: dict[str, bytes]
) -> None:
    machine = tree(tmp_path_factory.mktemp("any"), first)
    began = time.monotonic()
    with Sensors(machine) as sensors:
        for files in ({}, later, first):
            tree(machine.root, files)
            for reading in readings(sensors.channels, sensors.read()):
                assert plausible(reading)
                assert reading.source
    assert time.monotonic() - began < 30


# -- the sampler


def test_frames_come_at_the_period_and_the_last_one_after_the_end(plant: Plant) -> None:
    with Sampler(plant("rk3588_vendor"), period_seconds=0.02) as sampler:
        began = time.monotonic_ns()
        sampler.start()
        time.sleep(0.5)
        ended = time.monotonic_ns()
        recording = sampler.stop()
    took_seconds = (time.monotonic_ns() - began) / 1e9
    at = [frame.at_ns for frame in recording.frames]
    assert began <= at[0]
    assert at[-1] >= ended
    assert at == sorted(at)
    assert 4 <= len(at) <= took_seconds / 0.02 + 3
    assert {len(frame.values) for frame in recording.frames} == {len(recording.channels)}
    assert recording.hung == ""


def test_it_starts_again_and_keeps_nothing_of_before(plant: Plant) -> None:
    with Sampler(plant("rk3588_vendor"), period_seconds=0.01) as sampler:
        sampler.start()
        time.sleep(0.05)
        first = sampler.stop()
        assert sampler.latest is None
        assert sampler.stop().frames == ()
        sampler.start()
        second = sampler.stop()
    assert second.frames[0].at_ns > first.frames[-1].at_ns
    assert second.channels == first.channels


def test_it_leaves_neither_thread_nor_file_behind(plant: Plant) -> None:
    machine = plant("rk3588_vendor")
    files, threads = open_files(), threading.active_count()
    with Sampler(machine, period_seconds=0.01) as sampler:
        sampler.start()
        time.sleep(0.03)
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    assert open_files() == files


class Stuck:
    """A file that answers at first and later does not, as one behind a driver that waits for a dead device."""

    def __init__(self) -> None:
        self.answers = 2
        self.released = threading.Event()

    def __call__(self, data: Sequence[bytes], _: int) -> Mapping[str, float]:
        self.answers -= 1
        if self.answers < 0:
            self.released.wait(60)
        return {"stuck": 40.0}


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    parser = Stuck()

    def with_stuck(machine: Machine, *, each_cpu: bool = False) -> list[Probe]:
        others = list(probes(machine, each_cpu=each_cpu))
        return [*others[:3], Probe("temperature", (f"{ZONE}/type",), parser, ("stuck",)), *others[3:]]

    monkeypatch.setattr(module, "probes", with_stuck)
    return parser


def test_what_moves_slowly_is_in_the_first_the_fourth_and_the_last_frame(plant: Plant) -> None:
    with Sampler(plant("rk3588_vendor"), period_seconds=0.01) as sampler:
        for _ in range(2):  # each recording counts for itself
            sampler.start()
            while sampler.latest is None or sampler._sensors is None or len(sampler._frames) < 6:
                time.sleep(0.005)
            recording = sampler.stop()
            zones = [place for place, each in enumerate(recording.channels) if each.quantity == "temperature"]
            clocks = [place for place, each in enumerate(recording.channels) if each.quantity == "clock"]
            told = [frame.values[zones[0]] is not None for frame in recording.frames]
            assert told[0] and told[-1]
            assert 0 < sum(told) < len(told)
            assert all(frame.values[clocks[0]] is not None for frame in recording.frames)


def test_a_file_that_hangs_blocks_nobody_and_the_next_recording_does_without_it(plant: Plant, stuck: Stuck) -> None:
    async def measured() -> float:
        """The longest time for which the event loop did not turn while the sensors hang."""
        longest = 0.0
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - began)
        return longest

    with Sampler(plant("rk3588_vendor"), period_seconds=0.01) as sampler:
        sampler.start()
        assert asyncio.run(measured()) < 20
        began = time.monotonic()
        recording = sampler.stop()
        assert time.monotonic() - began < 30
        assert recording.hung == f"{ZONE}/type"
        assert len(recording.frames) == 1
        sampler.start()
        time.sleep(0.05)
        stuck.released.set()  # the old reader wakes up, and must leave the new one's work alone
        deadline = time.monotonic() + 30
        while len(sampler._frames) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        again = sampler.stop()
    assert again.hung == ""
    assert len(again.frames) > 3
    names = {reading.name for frame in again.frames for reading in readings(again.channels, frame)}
    assert "bigcore0-thermal" in names
    assert "stuck" not in names


def test_a_search_that_hangs_leaves_it_blind_and_blocks_nobody(plant: Plant, stuck: Stuck) -> None:
    stuck.answers = 0
    with Sampler(plant("rk3588_vendor")) as sampler:
        sampler.start()
        time.sleep(0.05)
        began = time.monotonic()
        assert sampler.stop().hung
        assert time.monotonic() - began < 30
        assert sampler.blind
        sampler.start()
        assert sampler.stop().frames == ()
    stuck.released.set()


# -- this machine


def test_this_machine_s_memory_is_what_the_kernel_says() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    found = value(Machine(), "memory", "available")
    assert found == pytest.approx(available, rel=0.2)


def test_a_busy_cpu_of_this_machine_is_seen() -> None:
    random_numbers = random.Random(1)
    with Sensors() as sensors:
        sensors.read()
        until = time.monotonic() + 0.25
        while time.monotonic() < until:
            random_numbers.random()
        loads = [each for each in readings(sensors.channels, sensors.read()) if each.source == "/proc/stat"]
    least = 0.5 / (os.cpu_count() or 1)
    assert max(each.value for each in loads) >= least * 0.8

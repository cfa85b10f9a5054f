"""The constructed boards of tests/board, as the page's tests need them, and an RK3588 with all its files."""

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from trilithon.board.sensors.probes import Quantity
from trilithon.board.sensors.sensors import Sensors, readings
from trilithon.board.snapshot import Board, read_board
from trilithon.board.sysfs import Machine
from trilithon.engines.base import Build, Placement, Settings, Unit
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.pool.pool import Loaded
from trilithon.web.board.chip import values_of

_BOARDS = Path(__file__).parents[2] / "board" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("constructed_boards", _BOARDS)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
plant = _MODULE.plant

Values = Mapping[tuple[Quantity, str], float]

# What an RK3588 shows while it answers: an Orange Pi 5 Plus with a handover from the NPU to the big cores. The figures
# are made up, the files are the vendor kernel's.
_TICKS = ((120, 880), (40, 960), (310, 690), (80, 920), (940, 60), (970, 30), (910, 90), (880, 120))
_CELSIUS = {
    "soc-thermal": 58231,
    "bigcore0-thermal": 63154,
    "bigcore1-thermal": 64692,
    "littlecore-thermal": 57307,
    "center-thermal": 56384,
    "gpu-thermal": 55461,
    "npu-thermal": 61307,
}
_MEMINFO = """MemTotal: 16330752 kB
MemFree: 4823450 kB
MemAvailable: 10223616 kB
Buffers: 102400 kB
Cached: 5662310 kB
AnonPages: 3250586 kB
Shmem: 209715 kB
SwapTotal: 2097152 kB
SwapFree: 2097152 kB
"""


def _stat(rounds: int) -> str:
    lines = [f"cpu{cpu} {busy * rounds} 0 0 {idle * rounds} 0 0 0 0 0 0" for cpu, (busy, idle) in enumerate(_TICKS)]
    return "\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *lines, "intr 0\n"])


def rk3588_files() -> dict[str, str]:
    files = {
        "/proc/stat": _stat(1),
        "/proc/meminfo": _MEMINFO,
        "/sys/kernel/debug/rknpu/load": "NPU load:  Core0: 71%, Core1: 68%, Core2: 64%,\n",
        "/sys/kernel/debug/dma_buf/bufinfo": "Dma-buf Objects:\n\nTotal 12 objects, 1503238553 bytes\n",
        "/sys/class/devfreq/fb000000.gpu/load": "27@300000000Hz\n",
        "/sys/class/hwmon/hwmon0/name": "ina226\n",
        "/sys/class/hwmon/hwmon0/power1_input": "9840000\n",
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000\n",
        "/sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "2352000\n",
        "/sys/devices/system/cpu/cpufreq/policy6/scaling_cur_freq": "2304000\n",
        "/sys/class/devfreq/dmc/cur_freq": "2112000000\n",
    }
    for number, (name, value) in enumerate(_CELSIUS.items()):
        files |= {f"/sys/class/thermal/thermal_zone{number}/type": f"{name}\n"}
        files |= {f"/sys/class/thermal/thermal_zone{number}/temp": f"{value}\n"}
    return files


@pytest.fixture
def rk3588(plant: Callable[..., Machine]) -> Machine:
    return plant("rk3588_vendor", files=rk3588_files())


@pytest.fixture
def work(tmp_path: Path) -> Callable[[], None]:
    """Let the RK3588's cores work on, as long as its load says."""
    rounds = itertools.count(2)

    def work() -> None:
        (tmp_path / "rk3588_vendor/proc/stat").write_text(_stat(next(rounds)), encoding="utf-8")

    return work


@pytest.fixture
def sense(work: Callable[[], None], tmp_path: Path) -> Callable[[Machine], Values]:
    """What a machine's sensors say, load since the moment before."""

    def sense(machine: Machine) -> Values:
        with Sensors(machine, each_cpu=True) as sensors:
            sensors.read()
            if (tmp_path / "rk3588_vendor/proc/stat").exists():
                work()
            return values_of(readings(sensors.channels, sensors.read()))

    return sense


@pytest.fixture
def loaded(tiny: Path) -> Callable[..., Loaded]:
    """`loaded("cpu", prefill="npu", users=2, key="a model")`: a runner as the pool describes it."""

    def placement(unit: Unit, before: Placement | None = None) -> Placement:
        units: tuple[Unit, ...] = ("cpu", "gpu", "npu")
        return Placement(
            name=f"scripted/{unit}",
            file=read_model_file(tiny, None),
            build=Build(engine="scripted", name="b", version="1", units=units, features=frozenset(), where=""),
            unit=unit,
            settings=Settings(),
            prefill=before,
        )

    def loaded(unit: Unit, *, prefill: Unit | None = None, users: int = 1, key: str = "tiny") -> Loaded:
        return Loaded(
            key=key,
            placement=placement(unit, placement(prefill) if prefill else None),
            state="ready",
            users=users,
            waiting=0,
            size_bytes=1 << 20,
            pid=None,
            pinned=False,
            idle_seconds=0.0,
            expires_in_seconds=None,
            crashes=0,
            load_seconds=0.1,
        )

    return loaded


@pytest.fixture(scope="module")
def rk3588_board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    machine = plant.__wrapped__(tmp_path_factory.mktemp("board"))("rk3588_vendor", files=rk3588_files())
    return read_board(machine)

"""What reading the sensors costs: CPU seconds per second at 4 Hz, on this machine and on a constructed RK3588.

    python benchmarks/sampler.py [--seconds 20] [--slowdown 8] [--json]

The bound is 1% of one little core of a board. Such a core (Cortex-A55 at 1.8 GHz) is assumed to run Python
`--slowdown` times slower than this one: an allowance, not a measurement. The constructed tree has an RK3588's files
(seven thermal zones, three CPU clocks, NPU, GPU and memory, the load of the NPU's cores, a power meter). They are
ordinary files: the cost of the drivers behind the real ones comes on top, and only a board can show it.
"""

import re
import tempfile
import time
import tomllib
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run

from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sysfs import THIS_MACHINE, Machine

_TREE = Path(__file__).parent.parent / "tests" / "board" / "trees" / "rk3588_vendor.toml"
_ZONES = ("soc", "bigcore0", "bigcore1", "littlecore", "center", "gpu", "npu")
_LITTLE_CORE = 0.01
_BUFFER = (
    "00008294400\t00000002\t00080007\t00000003\tdrm\t00012345\t<none>\n\tAttached Devices:\nTotal 0 devices attached\n"
)


def rk3588(root: Path) -> Machine:
    """The tree of the tests, with every sensor that an RK3588 can have."""
    if not _TREE.is_file():
        raise CannotMeasure(f"{_TREE} is missing; run this script from a checkout of the repository")
    files = tomllib.loads(_TREE.read_text(encoding="utf-8"))["files"]
    for number, zone in enumerate(_ZONES):
        folder = f"/sys/class/thermal/thermal_zone{number}"
        files |= {f"{folder}/type": f"{zone}-thermal\n", f"{folder}/temp": f"{41000 + number}\n"}
    files["/sys/kernel/debug/rknpu/load"] = "NPU load:  Core0: 12%, Core1:  0%, Core2:  0%,\n"
    files["/sys/kernel/debug/dma_buf/bufinfo"] = f"{200 * _BUFFER}\nTotal 200 objects, 1658880000 bytes\n"
    files |= {"/sys/class/hwmon/hwmon0/name": "ina226\n", "/sys/class/hwmon/hwmon0/power1_input": "7125000\n"}
    for key, text in files.items():
        for path, content in _expanded(key, text):
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
    return Machine(root)


def _expanded(path: str, text: str) -> list[tuple[str, str]]:
    match = re.search(r"\{(\d+)-(\d+)\}", path)
    if match is None:
        return [(path, text)]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [(path.replace(match[0], str(n)), text.replace("{n}", str(n))) for n in numbers]


def share(machine: Machine, seconds: int) -> tuple[float, int, int]:
    """CPU seconds per second of this process while nothing but the sampler runs; readings; frames.

    Every second holds the same work, and other processes only add to its cost (through the caches, two to three
    times as much): the cheapest second counts.
    """
    with Sampler(machine) as sampler:
        sampler.start()
        time.sleep(1.0)  # the search for sensors is over
        shares = []
        for _ in range(seconds):
            cpu, wall = time.process_time(), time.monotonic()
            time.sleep(1.0)
            shares.append((time.process_time() - cpu) / (time.monotonic() - wall))
        recording = sampler.stop()
    return min(shares), len(recording.channels), len(recording.frames)


def figures_of(name: str, machine: Machine, seconds: int, slowdown: float) -> dict[str, Figure]:
    cpu_share, readings, frames = share(machine, seconds)
    return {
        f"{name}, readings": readings,
        f"{name}, frames": frames,
        f"{name}, CPU s per s": cpu_share,
        f"{name}, share of a little core": cpu_share * slowdown,
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=count, default=20)
    parser.add_argument("--slowdown", type=float, default=8.0, help="how much slower a little core is than this one")
    options = parser.parse_args()
    figures: dict[str, Figure] = {"assumed slowdown": options.slowdown}
    bounds = []
    with tempfile.TemporaryDirectory() as folder:
        for name, machine in (("this machine", THIS_MACHINE), ("constructed RK3588", rk3588(Path(folder)))):
            bound = Bound(f"{name}, share of a little core", most=_LITTLE_CORE)
            figures |= attempted([bound.figure], figures_of, name, machine, options.seconds, options.slowdown)
            bounds.append(bound)
    return report(figures, bounds, as_json=options.json)


if __name__ == "__main__":
    run(main)

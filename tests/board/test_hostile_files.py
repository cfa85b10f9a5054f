"""Whatever stands where a file is expected, the board is read, in bounded time."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.board.doctor import findings
from trilithon.board.snapshot import Board, read_board
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]

TREES = sorted(path.stem for path in (Path(__file__).parent / "trees").glob("*.toml"))
# What the trees do not have and the readers ask for all the same.
MORE = (
    "/proc/self/environ",
    "/proc/2/comm",
    "/proc/1/cgroup",
    "/proc/self/cgroup",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpuset.cpus.effective",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.stat",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/devices/cpu_atom/cpus",
    "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
    "/sys/class/hwmon/hwmon1/in0_lcrit_alarm",
    "/sys/kernel/debug/rknpu/version",
    "/usr/share/vulkan/icd.d/x.json",
    "/usr/lib/librkllmrt.so",
    "/var/lib/dpkg/status",
    "/dev/mali0",
)
WORDS = (
    "9" * 5000,
    "9" * 400,
    "-1",
    "0",
    "1e9",
    "0x10",
    "٣",
    "state0\t9",
    "4 4",
    "0-8191",
    "[" * 5000,
    "a\nb\x1b[31m\0c",
)
WORDS += ("0::/../..\n5:memory:/a\n:::", "max 0", "1 0", "30 1 0:1 / /sys/fs/cgroup rw - cgroup2 none rw")
WORDS += ('{"ICD": {"library_path": "a\\u0000b"}}', '{"ICD": {"library_path": "\\ud800"}}', "LD_LIBRARY_PATH=/a\nb")
Hostile = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(WORDS).map(lambda word: word.encode("utf-8")),
    st.sampled_from(["directory", "pipe", "circle", "nowhere", "closed", "huge"]),
)


def _put(place: Path, kind: bytes | str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case bytes():
            place.write_bytes(kind)
        case "directory":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
        case "circle":
            place.symlink_to(place.name)
        case "nowhere":
            place.symlink_to("/nowhere/at/all")
        case "closed":
            place.write_bytes(b"")
            place.chmod(0)
        case "huge":
            place.write_bytes(b"7 " * (1 << 20))


@contextmanager
def _instead(root: Path, hostile: Mapping[str, bytes | str]) -> Iterator[None]:
    """The files replaced for a while: planting a whole tree for every example would take long."""
    aside = root.parent / "aside"
    aside.mkdir(exist_ok=True)
    with ExitStack() as undo:
        for number, (path, kind) in enumerate(hostile.items()):
            place = Path(f"{root}{path}")
            if place.is_symlink() or place.exists():
                place.rename(aside / str(number))
                undo.callback((aside / str(number)).rename, place)
            _put(place, kind)
            undo.callback(place.rmdir if kind == "directory" else place.unlink)
        yield


def _paths(root: Path) -> list[str]:
    found = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return sorted({f"/{path.relative_to(root)}" for path in found} | set(MORE))


@pytest.fixture
def planted(plant: Plant) -> dict[str, Machine]:
    return {tree: plant(tree) for tree in TREES}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_makes_it_raise_or_wait(planted: dict[str, Machine], data: st.DataObject) -> None:
    machine = planted[data.draw(st.sampled_from(TREES))]
    hostile = data.draw(st.dictionaries(st.sampled_from(_paths(machine.root)), Hostile, max_size=12))
    with _instead(machine.root, hostile):
        began = time.monotonic_ns()
        board = read_board(machine, (Path("/data"), Path("/root")))
        found = findings(board, machine)
        assert time.monotonic_ns() - began < 10e9
    _is_whole(board)
    assert json.dumps(board.facts())
    assert all((finding.message + finding.fix).isprintable() and finding.id for finding in found)


def _is_whole(board: Board) -> None:
    assert set(board.big_cpus) <= {cpu for cluster in board.clusters for cpu in cluster.cpus}
    assert all(driver.library or not driver.serves for driver in board.vulkan)
    assert isinstance(board.describe(), str)
    assert all(isinstance(value, str) for value in board.must_match().values())


@pytest.mark.parametrize("kind", ["directory", "pipe", "circle", "nowhere", "closed", "huge", b"\xff\0" * 50, b""])
def test_everything_at_once(plant: Plant, kind: bytes | str) -> None:
    machine = plant("rk3588_vendor")
    paths = [path for path in _paths(machine.root) if kind != "huge" or path.startswith(("/proc", "/usr", "/etc"))]
    with _instead(machine.root, dict.fromkeys(paths, kind)):
        board = read_board(machine, (Path("/data"),))
        assert isinstance(findings(board, machine), list)
    _is_whole(board)

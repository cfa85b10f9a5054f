"""Limits of cgroups on constructed trees: the files of cgroups(7) over those of a board."""

import re
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.doctor import findings
from trilithon.board.limits.cgroups import Limits, read_limits
from trilithon.board.limits.memory import read_memory
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.runtime.memory_need import available_bytes
from trilithon.runtime.pool.budget import measured_budget

Plant = Callable[..., Machine]

GIB = 1 << 30
ROOT = "/sys/fs/cgroup"
MEMINFO_AVAILABLE = 12582912 * 1024  # of the tree rk3588_vendor
# A container of `docker run --cpus 2 --memory 2g` with a cgroup namespace, 100 MiB of it used.
DOCKER = {
    "/proc/self/cgroup": "0::/\n",
    f"{ROOT}/cpu.max": "200000 100000\n",
    f"{ROOT}/memory.max": "2147483648\n",
    f"{ROOT}/memory.current": "104857600\n",
}
V1_NO_LIMIT = 0x7FFFFFFFFFFFF000
V1_NO_LIMIT_64K = 0x7FFFFFFFFFFF0000


def v1(path: str, **files: str | int) -> dict[str, str]:
    return {f"{ROOT}/{path}/{name.replace('__', '.')}": f"{value}\n" for name, value in files.items()}


def test_a_container_of_docker(plant: Plant) -> None:
    machine = plant("rk3588_vendor", files=DOCKER)
    board = read_board(machine)
    assert board.big_cpus == (4, 5)
    left = 2 * GIB - (100 << 20)
    assert (board.memory_bytes, board.memory_available_bytes) == (16327680 * 1024, left)
    assert available_bytes(machine) == left
    budget = measured_budget([], machine)
    assert budget is not None
    assert left * 0.5 < budget.now == budget.total < left
    told = {finding.id: finding for finding in findings(board, machine)}
    assert "gets the time of 2 CPUs" in told["cpu-quota"].message and "2 threads" in told["cpu-quota"].message
    assert (
        "may use 2.0 GiB" in told["memory-limit"].message and "1.9 GiB of it are left" in told["memory-limit"].message
    )
    facts = board.must_match()
    assert (facts["CPU quota"], facts["memory limit"]) == ("2", "2.0 GiB")
    assert facts.keys() - read_board(plant("rk3566")).must_match().keys() == {"CPU quota", "memory limit"}


POD = "/kubepods/burstable/pod1/container1"
HYBRID = "3:cpu,cpuacct:/a\n2:memory:/a/b\n1:name=systemd:/a/b\n0::/a/b\n"
# Name: the files, and what they mean.
TREES: dict[str, tuple[Mapping[str, str], Mapping[str, object]]] = {
    "nothing": ({}, {}),
    "v2 without limits": (
        {
            f"{ROOT}/cpu.max": "max 100000\n",
            f"{ROOT}/memory.max": "max\n",
            f"{ROOT}/memory.high": "max\n",
            f"{ROOT}/memory.swap.max": "max\n",
        },
        {},
    ),
    "a parent's limits": (
        {
            "/proc/self/cgroup": f"0::{POD}\n",
            f"{ROOT}{POD}/cpu.max": "400000 100000\n",
            f"{ROOT}{POD}/memory.max": "max\n",
            f"{ROOT}/kubepods/burstable/pod1/cpu.max": "max 100000\n",
            f"{ROOT}/kubepods/burstable/cpu.max": "150000 100000\n",
            f"{ROOT}/kubepods/memory.max": f"{3 * GIB}\n",
            f"{ROOT}/kubepods/memory.current": f"{2 * GIB}\n",
        },
        {
            "cpu_quota": 1.5,
            "cpu_source": f"{ROOT}/kubepods/burstable/cpu.max",
            "memory_bytes": 3 * GIB,
            "memory_available_bytes": GIB,
            "memory_source": f"{ROOT}/kubepods/memory.max",
        },
    ),
    "the fullest cgroup is not the smallest": (
        {
            "/proc/self/cgroup": "0::/a/b\n",
            f"{ROOT}/a/b/memory.max": f"{4 * GIB}\n",
            f"{ROOT}/a/b/memory.current": f"{GIB}\n",
            f"{ROOT}/a/memory.max": f"{6 * GIB}\n",
            f"{ROOT}/a/memory.current": f"{5 * GIB}\n",
        },
        {"memory_bytes": 4 * GIB, "memory_available_bytes": GIB, "memory_source": f"{ROOT}/a/b/memory.max"},
    ),
    "memory.high below memory.max, and cache that can go": (
        {
            f"{ROOT}/memory.max": f"{8 * GIB}\n",
            f"{ROOT}/memory.high": f"{6 * GIB}\n",
            f"{ROOT}/memory.current": f"{5 * GIB}\n",
            f"{ROOT}/memory.stat": f"anon {GIB}\nfile {4 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\n",
        },
        {"memory_bytes": 6 * GIB, "memory_available_bytes": 4 * GIB, "memory_source": f"{ROOT}/memory.high"},
    ),
    "more used than allowed": (
        {f"{ROOT}/memory.max": f"{GIB}\n", f"{ROOT}/memory.current": f"{2 * GIB}\n"},
        {"memory_bytes": GIB, "memory_available_bytes": 0, "memory_source": f"{ROOT}/memory.max"},
    ),
    "use unknown": (
        {f"{ROOT}/memory.max": f"{GIB}\n"},
        {"memory_bytes": GIB, "memory_available_bytes": GIB, "memory_source": f"{ROOT}/memory.max"},
    ),
    "a limit above what there is": ({f"{ROOT}/memory.max": f"{64 * GIB}\n", f"{ROOT}/memory.current": "9\n"}, {}),
    "less than one CPU": ({f"{ROOT}/cpu.max": "50000 100000\n"}, {"cpu_quota": 0.5, "cpu_source": f"{ROOT}/cpu.max"}),
    "a quota without its period": ({f"{ROOT}/cpu.max": "300000\n"}, {"cpu_quota": 3, "cpu_source": f"{ROOT}/cpu.max"}),
    "a period of nothing": ({f"{ROOT}/cpu.max": "300000 0\n"}, {"cpu_quota": 3, "cpu_source": f"{ROOT}/cpu.max"}),
    "no swap": (
        {f"{ROOT}/memory.swap.max": "0\n", f"{ROOT}/memory.swap.current": "0\n"},
        {"swap_bytes": 0, "swap_used_bytes": 0},
    ),
    "a namespace's root that is not the process's": (
        {"/proc/self/cgroup": "0::/../..\n", f"{ROOT}/cpu.max": "100000 100000\n"},
        {"cpu_quota": 1, "cpu_source": f"{ROOT}/cpu.max"},
    ),
    "a neighbour of the namespace": (
        {"/proc/self/cgroup": "0::/../other\n", f"{ROOT}/cpu.max": "100000 100000\n"},
        {"cpu_quota": 1, "cpu_source": f"{ROOT}/cpu.max"},
    ),
    "a path as the host has it": (
        {"/proc/self/cgroup": f"0::{POD}\n", f"{ROOT}/memory.max": f"{GIB}\n", f"{ROOT}/memory.current": "0\n"},
        {"memory_bytes": GIB, "memory_available_bytes": GIB, "memory_source": f"{ROOT}/memory.max"},
    ),
    "v1": (
        v1("cpu,cpuacct", cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
        | v1("memory", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
        | v1("memory", memory__memsw__limit_in_bytes=3 * GIB, memory__memsw__usage_in_bytes=GIB + 4096)
        | {f"{ROOT}/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n"},
        {
            "cpu_quota": 2.5,
            "cpu_source": f"{ROOT}/cpu,cpuacct/cpu.cfs_quota_us",
            "memory_bytes": 2 * GIB,
            "memory_available_bytes": 3 * GIB // 2,
            "memory_source": f"{ROOT}/memory/memory.limit_in_bytes",
            "swap_bytes": GIB,
            "swap_used_bytes": 4096,
        },
    ),
    "v1 without limits": (
        v1("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
        | v1("memory", memory__limit_in_bytes=V1_NO_LIMIT, memory__memsw__limit_in_bytes=V1_NO_LIMIT)
        | {f"{ROOT}/memory/memory.stat": f"hierarchical_memory_limit {V1_NO_LIMIT_64K}\n"},
        {},
    ),
    "v1's parent that is not to be seen": (
        v1("memory", memory__limit_in_bytes=V1_NO_LIMIT_64K, memory__usage_in_bytes=GIB)
        | {f"{ROOT}/memory/memory.stat": f"hierarchical_memory_limit {2 * GIB}\n"},
        {"memory_bytes": 2 * GIB, "memory_available_bytes": GIB, "memory_source": f"{ROOT}/memory/memory.stat"},
    ),
    "v1 and v2 at once": (
        {"/proc/self/cgroup": HYBRID, f"{ROOT}/unified/a/b/cgroup.procs": ""}
        | v1("cpu,cpuacct/a", cpu__cfs_quota_us=100000, cpu__cfs_period_us=100000)
        | v1("memory/a/b", memory__limit_in_bytes=V1_NO_LIMIT)
        | v1("memory/a", memory__limit_in_bytes=GIB, memory__usage_in_bytes=0),
        {
            "cpu_quota": 1,
            "cpu_source": f"{ROOT}/cpu,cpuacct/a/cpu.cfs_quota_us",
            "memory_bytes": GIB,
            "memory_available_bytes": GIB,
            "memory_source": f"{ROOT}/memory/a/memory.limit_in_bytes",
        },
    ),
    "where mountinfo says, below the part that is mounted": (
        {
            "/proc/self/cgroup": "5:memory:/docker/abc/inner\n0::/\n",
            "/proc/self/mountinfo": "40 30 0:35 /docker/abc /my\\040cgroups ro - cgroup cgroup rw,memory\n",
            "/my cgroups/inner/memory.limit_in_bytes": f"{GIB}\n",
            "/my cgroups/inner/memory.usage_in_bytes": "0\n",
        },
        {
            "memory_bytes": GIB,
            "memory_available_bytes": GIB,
            "memory_source": "/my cgroups/inner/memory.limit_in_bytes",
        },
    ),
    "addresses": (
        {"/proc/self/limits": f"Max address space         {4 * GIB}           unlimited            bytes     \n"},
        {"address_space_bytes": 4 * GIB},
    ),
    "addresses without limit": (
        {"/proc/self/limits": "Max address space         unlimited            unlimited            bytes     \n"},
        {},
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree(plant: Plant, name: str) -> None:
    files, expected = TREES[name]
    assert read_limits(plant("rk3588_vendor", files=files)) == Limits(cpus=tuple(range(8)), **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "told"), [(1 << 29, {"memory-limit"}), (1 << 31, {"memory-limit", "memory-low"})])
def test_little_memory_is_told_once_with_the_fix_that_helps(plant: Plant, limit: int, told: set[str]) -> None:
    meminfo = "MemTotal: 16327680 kB\nMemAvailable: 786432 kB\n"
    machine = plant("rk3588_vendor", files={f"{ROOT}/memory.max": f"{limit}\n", "/proc/meminfo": meminfo})
    found = {finding.id for finding in findings(read_board(machine), machine)}
    assert found & {"memory-limit", "memory-low"} == told


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("50000", (4,)), ("100000", (4,)), ("190000", (4,)), ("350000", (4, 5, 6)), ("900000", (4, 5, 6, 7))],
)
def test_threads_are_as_many_as_the_quota_keeps_busy(plant: Plant, quota: str, cpus: tuple[int, ...]) -> None:
    assert read_board(plant("rk3588_vendor", files={f"{ROOT}/cpu.max": f"{quota} 100000\n"})).big_cpus == cpus


@pytest.mark.parametrize(
    "files",
    [
        {f"{ROOT}/cpuset.cpus.effective": "2-5\n"},
        {f"{ROOT}/cpuset/cpuset.cpus": "2-5\n"},
        {f"{ROOT}/cpuset/cpuset.effective_cpus": "2-5\n", f"{ROOT}/cpuset/cpuset.cpus": "\n"},
        {"/proc/self/cgroup": "0::/a/b\n", f"{ROOT}/a/cpuset.cpus.effective": "2-5\n", f"{ROOT}/a/b/cpu.max": "max\n"},
        {"/proc/self/status": "Cpus_allowed_list:\t2-6\n", f"{ROOT}/cpuset.cpus.effective": "0-5\n"},
    ],
)
def test_a_cpuset(plant: Plant, files: Mapping[str, str]) -> None:
    machine = plant("rk3588_vendor", files=files)
    board = read_board(machine)
    assert board.big_cpus == (4, 5)
    assert "CPU set" in board.must_match()
    assert "cpu-set" in {finding.id for finding in findings(board, machine)}


@pytest.mark.parametrize(("cpus", "told"), [("0-1,4-5", True), ("0-3", False), ("0-7", False)])
def test_an_affinity_is_told_but_not_that_of_the_server_to_the_little_cores(
    plant: Plant, cpus: str, told: bool
) -> None:
    machine = plant("rk3588_vendor", files={"/proc/self/status": f"Cpus_allowed_list:\t{cpus}\n"})
    messages = [finding.message for finding in findings(read_board(machine), machine) if finding.id == "cpu-set"]
    assert len(messages) == told
    assert all(message.startswith(f"this process may use cpu{cpus} of cpu0-7: taskset") for message in messages)


def test_second_threads_of_cores_are_used_when_they_are_all_that_is_allowed(plant: Plant) -> None:
    status = {"/proc/self/status": "Cpus_allowed_list:\t8-11\n"}
    assert read_board(plant("pc_x86_64", files=status)).big_cpus == (8, 9, 10, 11)


CPUINFO = "\n".join(f"processor\t: {cpu}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n" for cpu in range(2))
ONLINE = "/sys/devices/system/cpu/online"


@pytest.mark.parametrize(
    ("allowed", "online", "cpus"),
    [
        ("4,6", "0-1", (4, 6)),
        ("4-5", "0-1", (4, 5)),
        ("1,4-5", "0-2", (4, 5)),  # overlaps what lxcfs shows
        ("0-1", "0-1", (0, 1)),
    ],
)
@pytest.mark.parametrize("folders", [True, False])
def test_lxcfs_counts_the_allowed_cpus_from_0(
    plant: Plant, allowed: str, online: str, cpus: tuple[int, ...], folders: bool
) -> None:
    """lxcfs shows `online` and /proc/cpuinfo in its own way, and the host's cpuN folders (lxcfs issue 731)."""
    hidden = [] if folders or allowed.startswith("1,") else [
        f"/sys/devices/system/cpu/cpu{cpu}/{name}"
        for cpu in range(8)
        for name in ("cpu_capacity", "topology/thread_siblings_list")
    ]  # fmt: skip
    files = {"/proc/self/status": f"Cpus_allowed_list:\t{allowed}\n", ONLINE: f"{online}\n", "/proc/cpuinfo": CPUINFO}
    board = read_board(plant("rk3588_vendor", without=hidden, files=files))
    assert board.big_cpus == cpus


def test_cores_behind_lxcfs_keep_their_names(plant: Plant) -> None:
    files = {"/proc/self/status": "Cpus_allowed_list:\t4,6\n", ONLINE: "0-1\n", "/proc/cpuinfo": CPUINFO}
    (cluster,) = read_board(plant("rk3588_vendor", files=files)).clusters
    assert (cluster.cpus, cluster.core_type, cluster.max_khz) == ((4, 6), "Cortex-A76", 2_352_000)


def test_cpus_that_are_offline_are_no_sign_of_lxcfs(plant: Plant) -> None:
    """`Cpus_allowed_list` has the CPUs that could come online."""
    offline = [f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in (6, 7)]
    board = read_board(plant("rk3588_vendor", without=offline, files={ONLINE: "0-5\n"}))
    assert board.big_cpus == (4, 5)


def test_swap_is_that_of_the_cgroup(plant: Plant) -> None:
    swap = {f"{ROOT}/memory.swap.max": f"{GIB}\n", f"{ROOT}/memory.swap.current": "4096\n"}
    meminfo = {"/proc/meminfo": "MemTotal: 9 kB\nSwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n"}
    memory = read_memory(plant("rk3588_vendor", files=swap | meminfo))
    assert (memory.swap_bytes, memory.swap_used_bytes) == (GIB, 4096)
    memory = read_memory(plant("rk3566", files=meminfo))
    assert (memory.swap_bytes, memory.swap_used_bytes) == (2 * GIB, GIB)


@given(
    chain=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4),
    version=st.sampled_from([1, 2]),
)
def test_no_cgroup_of_the_chain_is_ever_overdrawn(
    tmp_path_factory: pytest.TempPathFactory, chain: list[tuple[int, int, int]], version: int
) -> None:
    """In GiB: limit, use and cache of the cgroups from the root down."""
    root = tmp_path_factory.mktemp("chain")
    place = root / f"sys/fs/cgroup{'/memory' * (version == 1)}"
    limit, current = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {32 * GIB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(f"{'7:memory' if version == 1 else '0:'}:{'/a' * (len(chain) - 1) or '/'}\n")
    for most, used, cache in chain:
        place.mkdir(parents=True)
        (place / limit).write_text(f"{most * GIB}\n")
        (place / current).write_text(f"{used * GIB}\n")
        (place / "memory.stat").write_text(f"inactive_file {cache * GIB}\n")
        place /= "a"
    free = min(max(most - max(used - cache, 0), 0) for most, used, cache in chain)
    assert available_bytes(Machine(root)) == min(free, 32) * GIB
    limits = read_limits(Machine(root))
    assert limits.memory_bytes == min(most for most, _, _ in chain) * GIB
    assert re.search(r"/sys/fs/cgroup(/memory)?(/a)*/memory\.", limits.memory_source)


def test_a_driver_s_buffers_do_not_raise_the_budget_above_the_limit(plant: Plant) -> None:
    class Npu:
        need_bytes = held_bytes = 5 * GIB

    budget = measured_budget([Npu()], plant("rk3588_vendor", files=DOCKER))
    assert budget is not None and budget.now <= 2 * GIB and budget.total <= 2 * GIB
    assert MEMINFO_AVAILABLE > 2 * GIB

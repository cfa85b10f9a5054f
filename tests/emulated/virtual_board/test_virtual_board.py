"""The program on a virtual RK3588: a real kernel with real drivers of clocks, thermometers and disks."""

import json
import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from standin_rk3588 import DEVFREQ
from virtual_board import ASK, VirtualBoard

from trilithon.cli.main import main

pytestmark = [pytest.mark.boards, pytest.mark.slow, pytest.mark.timeout(1800)]

CPUS = "/sys/devices/system/cpu"
# What sudo stands for where one is root.
SUDO = 'sudo() { "$@"; }; export -f sudo\n'
STATE = (
    f"grep -H . {CPUS}/cpufreq/policy*/scaling_{{governor,min_freq,max_freq}} "
    "/sys/class/devfreq/*/{governor,min_freq,max_freq}"
)
# The board and what doctor finds of it, without the engines, whose check takes some seconds here.
EXAMINE = """python3 -c '
import json
from dataclasses import asdict
from trilithon.board.doctor import findings
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import THIS_MACHINE
board = read_board()
print(json.dumps({"board": asdict(board), "findings": [asdict(finding) for finding in findings(board, THIS_MACHINE)]}))
'"""


def doctor(board: VirtualBoard, before: str = "") -> dict[str, Any]:
    report: dict[str, Any] = json.loads(board.output(f"{before}\ntrilithon doctor --json"))
    return report


def examine(board: VirtualBoard, before: str = "") -> dict[str, Any]:
    report: dict[str, Any] = json.loads(board.output(f"{before}\n{EXAMINE}"))
    return report


def severities(report: dict[str, Any]) -> dict[str, str]:
    """Findings by id, with their severity."""
    return {finding["id"]: finding["severity"] for finding in report["findings"]}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.fixture(scope="module")
def first(board: VirtualBoard) -> dict[str, Any]:
    """What doctor says of the board as it has booted."""
    return doctor(board)


def test_doctor_says_what_was_planted(board: VirtualBoard, first: dict[str, Any]) -> None:
    facts = first["board"]
    planted = {
        "chip": "RK3588",
        "model": "Xunlong Orange Pi 5 Plus",
        "architecture": "aarch64",
        "big_cpus": [4, 5, 6, 7],
        "physical_cores": 8,
        "kernel": board.output("uname -r").strip(),
        "operating_system": "Debian GNU/Linux 12 (bookworm)",
        "swap_bytes": 0,
        "swap_used_bytes": 0,
        "in_container": False,
        "container": "",
        "device_tree_hidden": False,
        "gpu": None,  # the virtual machine has no GPU, only the clock of one
        "vulkan": [],
        "npu": {"driver": "none", "version": None, "cores": 3, "nodes": []},
        "other_npus": [],
        "runtimes": [],
        "swaps": [],
        "page_size_bytes": 4096,
        "open_files_soft": 1024,
        "open_files_hard": 4096,
    }
    assert {name: facts[name] for name in planted} == planted
    # All cores of QEMU's machine call themselves A76; which are little says the device tree: 530 × 1800 of 1024 × 2400.
    assert [
        (
            cluster["cpus"],
            cluster["kind"],
            cluster["core_type"],
            cluster["max_khz"],
            cluster["limit_khz"],
            cluster["capacity"],
            cluster["governor"],
        )
        for cluster in facts["clusters"]
    ] == [
        ([0, 1, 2, 3], "little", "Cortex-A76", 1_800_000, 1_800_000, 397, "schedutil"),
        ([4, 5, 6, 7], "big", "Cortex-A76", 2_400_000, 2_400_000, 1024, "schedutil"),
    ]
    clocks = {clock["device"]: clock for clock in facts["clocks"]}
    for node, (_, steps) in DEVFREQ.items():
        name, _, address = node.partition("@")
        clock = clocks.pop(f"{address}.{name}" if address else name)
        unit = "memory" if name == "dmc" else name
        first_step, top = steps[0] * 10**6, steps[-1] * 10**6
        assert clock == {
            "unit": unit,
            "device": clock["device"],
            "current_hz": first_step,
            "max_hz": top,
            "governor": "userspace",
            "limit_hz": top,
        }
    assert clocks == {}
    total = int(board.output("sed -n 's/MemTotal: *//p' /proc/meminfo").split()[0])
    assert facts["memory_bytes"] == total * 1024
    assert total * 1024 * 0.7 < facts["memory_available_bytes"] < total * 1024
    assert {disk["kind"] for disk in facts["disks"]} == {"virtual"}
    assert facts["limits"]["cpus"] == list(range(8))
    assert facts["description"].startswith("Xunlong Orange Pi 5 Plus · RK3588 · 8×Cortex-A76 · 4 GiB · Linux ")
    assert severities(first) == {
        "cpu-governor": "warning",
        "memory-clock": "warning",
        "little-cores": "note",
        "npu-driver-none": "warning",
        "dot-product": "warning",  # xllamacpp's wheel for arm64
    }
    usable = {row["placement"] for row in first["engines"] if row["usable"]}
    assert usable == {"llama.cpp@embedded/cpu", "scripted/cpu"}


def test_the_thermometers_and_clocks_are_all_read(board: VirtualBoard) -> None:
    board.heat("gpu", 61)
    script = (
        "import json, time\nfrom trilithon.board.sensors.sensors import Sensors, readings\n"
        "with Sensors() as s:\n    s.read(); time.sleep(0.2)\n"
        "    print(json.dumps([(r.quantity, r.name, r.value) for r in readings(s.channels, s.read())]))"
    )
    values = {
        (quantity, name): value
        for quantity, name, value in json.loads(board.output(f"python3 -c {shlex.quote(script)}"))
    }
    zones = {name: value for (quantity, name), value in values.items() if quantity == "temperature"}
    others = {f"{zone}-thermal" for zone in ("package", "bigcore0", "bigcore2", "littlecore", "center", "npu")}
    assert zones.keys() == others | {"gpu-thermal"}
    assert zones["gpu-thermal"] == pytest.approx(61, abs=0.5)
    assert all(zones[zone] == pytest.approx(45, abs=0.5) for zone in others)
    clocks = {name for quantity, name in values if quantity == "clock"}
    assert clocks == {"cpu0-3", "cpu4-5", "cpu6-7", "NPU", "GPU", "memory"}
    board.heat("gpu", 45)


def test_the_fix_of_the_governor_fixes_it_and_is_no_heat(board: VirtualBoard) -> None:
    before, first = board.output(STATE), examine(board)
    (fix,) = (finding["fix"] for finding in first["findings"] if finding["id"] == "cpu-governor")
    after = examine(board, SUDO + f"{{ {fix}; }} > /dev/null")
    assert severities(after) == severities(first) | {"cpu-governor": "good"}
    assert [cluster["governor"] for cluster in after["board"]["clusters"]] == ["performance", "performance"]
    board.output(f"echo schedutil | tee {CPUS}/cpufreq/policy*/scaling_governor")
    assert board.output(STATE) == before


def test_heat_is_told_while_it_lasts_and_afterwards(board: VirtualBoard) -> None:
    states, first = "cat /sys/class/thermal/cooling_device*/cur_state", examine(board)
    board.heat("bigcore2", 96)
    wait_until(lambda: board.output(states).split()[2] != "0")
    # What happens when it is cooler again is waited for: the time must be long enough to be told.
    hot = examine(board, "sleep 2")
    (finding,) = (finding for finding in hot["findings"] if finding["id"] == "throttled")
    assert finding["message"].startswith("slowed by heat now: cpufreq-cpu6 at step ")
    # The limit is heat's, and nothing for the user to raise.
    assert severities(hot) == severities(first) | {"throttled": "warning"}
    board.heat("bigcore2", 45)
    wait_until(lambda: board.output(states).split() == ["0", "0", "0"])
    cooled = examine(board)
    (finding,) = (finding for finding in cooled["findings"] if finding["id"] == "throttled")
    assert finding["message"].startswith("was slowed: cpufreq-cpu6 for ")
    assert severities(cooled) == severities(first) | {"throttled": "note"}
    board.output("echo 1 | tee /sys/class/thermal/cooling_device*/stats/reset")
    assert severities(examine(board)) == severities(first)


def test_pinned_clocks_of_a_killed_campaign_are_restored(board: VirtualBoard) -> None:
    before = board.output(STATE)
    record = "/root/.local/share/trilithon/tuning.json"
    speeds = "cat /sys/class/devfreq/*/userspace/set_freq"
    board.output(
        "trilithon bench /mnt/tiny.gguf --pin-clocks -p 16 -n 4 -r 1 > /mnt/bench.log 2>&1 & bench=$!\n"
        "for attempt in $(seq 200); do\n"
        # The last clock that is pinned is the NPU's.
        f'  [ "$({speeds} | grep -c -e 1008 -e 2112)" = 3 ] && break; sleep 0.3\n'
        f"done; kill -KILL $bench; wait $bench; test -e {record}"
    )
    pinned = board.output(STATE)
    assert pinned.count("scaling_governor:performance") == 3, (board.folder / "bench.log").read_text()
    left = doctor(board)
    (finding,) = (finding for finding in left["findings"] if finding["id"] == "clocks-left")
    board.output(SUDO + finding["fix"])
    assert board.output(STATE) == before
    # In the order of the folders' names: dmc, GPU, NPU. Each goes back to where it was, though nobody had set it.
    firsts = [DEVFREQ[name][1][0] * 10**6 for name in ("dmc", "gpu@fb000000", "npu@fdab0000")]
    assert list(map(int, board.output(speeds).split())) == firsts
    assert board.run(f"test -e {record}").returncode == 1


def test_the_engine_works_and_answers_on_the_big_cores(board: VirtualBoard) -> None:
    assert "llama.cpp@embedded/cpu works" in board.trilithon("engines", "check")
    script = ASK + (
        'print(json.dumps(ask("/v1/chat/completions", {"model": "tiny", "max_tokens": 4, '
        '"messages": [{"role": "user", "content": "Hi"}]})))'
    )
    output = board.output(
        "trilithon serve /mnt/tiny.gguf --port 8123 --no-pages > /mnt/serve.log 2>&1 & server=$!\n"
        f"python3 -c {shlex.quote(script)} || cat /mnt/serve.log\n"
        "engine=$(grep -l 'child[.]embedded' /proc/[0-9]*/cmdline | cut -d / -f 3)\n"
        "grep -h Cpus_allowed_list /proc/${engine:?}/task/*/status | cut -f 2 | sort -u\n"
        "tr '\\0' '\\n' < /proc/$engine/cmdline | tail -n 1\n"
        "grep -h Cpus_allowed_list /proc/$server/status | cut -f 2\n"
        "kill $server; wait $server"
    )
    answer, *placement = output.splitlines()
    usage = json.loads(answer)["usage"]
    assert usage["completion_tokens"] == 4
    engine_cpus, settings, server_cpus = placement
    assert (engine_cpus, server_cpus) == ("4-7", "0-3")
    assert json.loads(settings)["cpuparams.n_threads"] == 4


def test_a_report_made_on_the_board_says_the_same_elsewhere(
    board: VirtualBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.trilithon("board-report", "--no-check", "--yes", "-o", "/mnt/report.zip")
    inside = board.trilithon("doctor", "--root", "/mnt/report.zip", "--json")
    monkeypatch.setenv("HOME", str(tmp_path))
    outside = CliRunner().invoke(main, ["doctor", "--root", str(board.folder / "report.zip"), "--json"])
    assert outside.output == inside
    stored = board.trilithon("board-report", "show", "/mnt/report.zip", "--member", "doctor.json")
    assert outside.output == stored
    live = doctor(board)
    again = json.loads(outside.output)
    for report in (live, again):
        report["board"].pop("memory_available_bytes")
        for cluster in report["board"]["clusters"]:
            cluster.pop("current_khz")
    assert again["findings"] == live["findings"]
    assert again["engines"] == live["engines"]
    assert again["board"].keys() == live["board"].keys()
    differing = {name for name, value in live["board"].items() if again["board"][name] != value}
    assert differing <= {"disks"}, {name: (live["board"][name], again["board"][name]) for name in differing}


def test_cores_that_are_switched_off_are_left_out(board: VirtualBoard) -> None:
    def switch(on: int, *cpus: int) -> str:
        return "".join(f"echo {on} > {CPUS}/cpu{cpu}/online\n" for cpu in cpus)

    try:
        fewer = examine(board, switch(0, 3, 6, 7))["board"]
        assert [(cluster["cpus"], cluster["kind"]) for cluster in fewer["clusters"]] == [
            ([0, 1, 2], "little"),
            ([4, 5], "big"),
        ]
        assert (fewer["big_cpus"], fewer["physical_cores"]) == ([4, 5], 5)
        # With the big ones gone, the others are of one kind.
        little = examine(board, switch(0, 4, 5))["board"]
        assert [(cluster["cpus"], cluster["kind"]) for cluster in little["clusters"]] == [([0, 1, 2], "all")]
        assert little["big_cpus"] == [0, 1, 2]
    finally:
        board.output(switch(1, 3, 4, 5, 6, 7))
    assert examine(board)["board"]["big_cpus"] == [4, 5, 6, 7]


def test_limits_of_a_cgroup_are_kept(board: VirtualBoard) -> None:
    script = """
cd /sys/fs/cgroup && echo '+cpu +cpuset +memory' > cgroup.subtree_control && mkdir limited
echo '250000 100000' > limited/cpu.max; echo 0-1,4-6 > limited/cpuset.cpus; echo 1500M > limited/memory.max
echo $$ > limited/cgroup.procs"""
    report = examine(board, script)
    board.output("rmdir /sys/fs/cgroup/limited")
    limits = report["board"]["limits"]
    assert (limits["cpu_quota"], limits["cpuset"], limits["memory_bytes"]) == (2.5, [0, 1, 4, 5, 6], 1500 << 20)
    assert report["board"]["big_cpus"] == [4, 5]
    assert severities(report).items() >= {"cpu-quota": "warning", "cpu-set": "note", "memory-limit": "warning"}.items()
    assert 1000 << 20 < report["board"]["memory_available_bytes"] < 1500 << 20


def test_eight_gigabytes(boot: Callable[..., AbstractContextManager[VirtualBoard]]) -> None:
    with boot(memory="8G") as large:
        report = doctor(large)
    facts = report["board"]
    assert " · 8 GiB · " in facts["description"]
    assert 7.3 * 2**30 < facts["memory_available_bytes"] < facts["memory_bytes"] < 8 * 2**30

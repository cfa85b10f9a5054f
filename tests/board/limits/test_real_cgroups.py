"""Limits of cgroups that these tests make, where they may: v1, or v2 with the controllers delegated."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path("/sys/fs/cgroup")
LIMIT = 512 << 20
# Enters the cgroups before anything is imported, so that all of its memory is counted there.
SCRIPT = """
import os, sys
for folder in sys.argv[1:]:
    with open(f"{folder}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
import json
from dataclasses import asdict
from trilithon.board.doctor import findings
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.runtime.pool.budget import measured_budget
board, budget = read_board(), measured_budget([])
print(json.dumps({
    "limits": asdict(board.limits), "threads": len(board.big_cpus), "available": board.memory_available_bytes,
    "budget": budget.total, "findings": [finding.id for finding in findings(board, THIS_MACHINE)],
    "facts": board.must_match(),
}))
"""


def _made(controller: str, v1_files: dict[str, str], v2_files: dict[str, str]) -> Path:
    """A new cgroup with these limits. Raises OSError where that is not allowed."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().split()]
    here = {controller: path.lstrip("/") for _, names, path in lines for controller in names.split(",")}
    version1 = ROOT / controller
    parent = version1 / here[controller] if version1.is_dir() else ROOT / here[""]
    name = f"trilithon-test-{os.getpid()}-{controller}"
    if not version1.is_dir():
        # A cgroup with processes has no children with controllers: one beside our own.
        parent = parent.parent if parent != ROOT else parent
        if controller not in (parent / "cgroup.subtree_control").read_text().split():
            raise PermissionError(f"{parent}: {controller} is not delegated")
    folder = parent / name
    folder.mkdir()
    try:
        for file, value in (v1_files if version1.is_dir() else v2_files).items():
            (folder / file).write_text(value)
    except OSError:
        folder.rmdir()
        raise
    return folder


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    folders: list[Path] = []
    limits = {
        "memory": ({"memory.limit_in_bytes": str(LIMIT)}, {"memory.max": str(LIMIT)}),
        "cpu": ({"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "120000"}, {"cpu.max": "120000 100000"}),
    }
    try:
        for controller, (v1_files, v2_files) in limits.items():
            folders.append(_made(controller, v1_files, v2_files))
    except OSError as error:
        for folder in folders:
            folder.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield folders
    for folder in folders:
        for attempt in range(50):  # the kernel lets go of an ended process's cgroup a little later
            try:
                folder.rmdir()
                break
            except OSError:
                if attempt == 49:
                    raise
                time.sleep(0.1)


def test_a_process_in_a_cgroup_keeps_to_its_limits(cgroups: list[Path]) -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, cgroups)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["limits"]["memory_bytes"] == LIMIT
    assert told["limits"]["cpu_quota"] == pytest.approx(1.2)
    assert told["limits"]["memory_source"].startswith(str(ROOT))
    assert 0 < told["available"] < LIMIT
    assert told["budget"] <= told["available"]
    assert told["threads"] == 1
    assert {"cpu-quota", "memory-limit"} <= set(told["findings"])
    assert (told["facts"]["CPU quota"], told["facts"]["memory limit"]) == ("1.2", "512.0 MiB")

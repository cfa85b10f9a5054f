"""The project on arm64: its wheel with its real dependencies, in Debian 12, on the cores of Rockchip's chips."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from arm64_root import Arm64Root
from device_tree import plant_device_tree, read_device_tree

from trilithon.board.snapshot import read_board
from trilithon.models.synthetic.tiny import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of RK3588 and RK3576; of RK3399 and RK3576; of RK3588, RK3566 and RK3568; of RK3399, RK3328 and RK3562.
CORES = {"cortex-a76": True, "cortex-a72": False, "cortex-a55": True, "cortex-a53": False}  # with dot product


# The kernel has no drivers of a board. The others depend on this machine: it may have fewer CPUs, or too little memory.
POSSIBLE = {"cpufreq-absent", "memory-clock-absent", "little-cores", "npu-driver-none", "cpu-set", "dot-product"}
POSSIBLE |= {
    "address-space",
    "cpu-quota",
    "disk-low",
    "memory-limit",
    "memory-low",
    "open-files",
    "swap-slow",
    "swap-used",
}


def json_of(arm64: Arm64Root, *argv: str, **options: Any) -> Any:
    done = arm64.run("trilithon", *argv, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model(arm64: Arm64Root) -> str:
    write_tiny_model(arm64.work / "tiny.gguf")
    return "/home/tiny.gguf"


@pytest.mark.parametrize("cpu", CORES)
def test_doctor_names_the_core_and_what_the_package_lacks_on_it(arm64: Arm64Root, cpu: str) -> None:
    report = json_of(arm64, "doctor", "--json", cpu=cpu)
    board = report["board"]
    assert board["architecture"] == "aarch64"
    assert {cluster["core_type"] for cluster in board["clusters"]} == {cpu.title()}
    assert {finding["id"] for finding in report["findings"]} <= POSSIBLE  # no device tree is hidden on a PC
    # The package is compiled for ARMv8.0: that costs speed where the core has dot product, and nothing elsewhere.
    slow = [finding for finding in report["findings"] if "without dot product" in finding["message"]]
    assert len(slow) == CORES[cpu]
    assert all("trilithon engines build" in finding["fix"] for finding in slow)


@pytest.mark.parametrize("cpu", ["cortex-a76", "cortex-a72", "cortex-a53"])
def test_the_packaged_engine_works_on_every_core(arm64: Arm64Root, cpu: str) -> None:
    (trial,) = json_of(arm64, "engines", "check", "llama.cpp@embedded", "--json", "--anew", cpu=cpu)
    assert trial["works"], trial


def test_the_wheel_of_ik_llama_cpp_works_where_its_instructions_are(
    arm64: Arm64Root, model: str, ik_library_arm64: Path
) -> None:
    """It is compiled with dot product: the fast engine for a Cortex-A76 without a compiler."""
    shutil.copytree(ik_library_arm64, arm64.work / "ik", dirs_exist_ok=True)
    environment = {"PYTHONPATH": "/home/site:/home/ik"}
    argv = ("--placement", "ik_llama.cpp@wheel/cpu", "--test", "tg", "-n", "8", "-r", "1", "--no-quality", "-o", "json")
    (row,) = json_of(arm64, "bench", model, *argv, environment=environment)
    assert row["n_gen"] == 8 and row["avg_ts"] > 0
    listed = arm64.run("trilithon", "engines", "list", cpu="cortex-a72", environment=environment)
    assert "compiled for asimddp, which this CPU lacks" in listed.stdout + listed.stderr


def test_a_measurement(arm64: Arm64Root, model: str) -> None:
    argv = ("--placement", "llama.cpp/cpu", "--test", "tg", "-n", "8", "-r", "1", "--no-quality", "-o", "json")
    (row,) = json_of(arm64, "bench", model, *argv)
    assert row["n_gen"] == 8 and row["avg_ts"] > 0


def test_a_served_answer(arm64: Arm64Root, model: str) -> None:
    argv = arm64.command("trilithon", "serve", model, "--port", "0", "--no-pages", "--context", "512")
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            url = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=100, trust_env=False)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_a_build_that_chooses_its_kernels_ends_the_advice(arm64: Arm64Root, arm64_llama: Path) -> None:
    """Debian's llama.cpp is of a newer release: its own loader and libraries are those of its root."""
    shutil.copytree(arm64_llama, arm64.work / "llama", symlinks=True)
    folder = arm64.work / "debian"
    folder.mkdir()
    program = folder / "llama-server"
    # known(ran): llama.cpp 0.7.0: the program is Debian's own for arm64; the script only says where its libraries are
    program.write_text('#!/bin/sh\nQEMU_LD_PREFIX=/home/llama exec /home/llama/usr/bin/llama-server "$@"\n')
    program.chmod(0o755)
    assert arm64.run("trilithon", "engines", "add", "/home/debian", "--name", "debian").returncode == 0
    try:
        report = json_of(arm64, "doctor", "--json")
        (trial,) = json_of(arm64, "engines", "check", "llama.cpp@debian", "--json")
    finally:
        assert arm64.run("trilithon", "engines", "remove", "debian").returncode == 0
    assert "dot-product" not in {finding["id"] for finding in report["findings"]}
    assert trial["works"], trial


@pytest.mark.parametrize("name", ["rk3588-rock-5b", "rk3399-rock-pi-4b"])
def test_doctor_says_of_a_planted_board_what_it_says_of_its_files(
    arm64: Arm64Root, device_trees: Path, name: str
) -> None:
    """qemu looks in the folder first."""
    tree = read_device_tree(device_trees / "rockchip" / f"{name}.dtb")
    planted = arm64.work / name
    outside = read_board(plant_device_tree(tree, planted))
    report = json_of(arm64, "doctor", "--json", environment={"QEMU_LD_PREFIX": f"/home/{name}"})
    board = report["board"]
    assert (board["chip"], board["model"]) == (outside.chip, tree.strings("model")[0])
    # The types of the cores are qemu's.
    kinds = {cpu: part["kind"] for part in board["clusters"] for cpu in part["cpus"]}
    assert kinds == {cpu: part.kind for part in outside.clusters for cpu in part.cpus}
    assert (board["npu"] and board["npu"]["cores"]) == (outside.npu and outside.npu.cores)
    messages = {finding["id"]: finding["message"] for finding in report["findings"]}
    assert messages.keys() >= {"cpufreq-absent", "little-cores", "dot-product"} and messages.keys() <= POSSIBLE
    assert ("npu-driver-none" in messages) == bool(outside.npu)

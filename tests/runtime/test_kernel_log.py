"""The kernel's lines in the diagnosis of a child. Those of the NPU are real, from reports of board owners."""

import asyncio
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines.base import Launch
from trilithon.runtime import process as process_module
from trilithon.runtime.diagnostics import Diagnosis
from trilithon.runtime.kernel_log import KernelLog
from trilithon.runtime.process import Process

TIMEOUT = (
    "RKNPU: failed to wait job, task counter: 0, flags: 0x5, ret = 0, elapsed time: 6144800us",
    "RKNPU: job timeout, flags: 0x0:",
    "RKNPU: \tcore 0 irq status: 0x200, raw status: 0xc0000200, require mask: 0x300, task counter: 0x0",
    "RKNPU: soft reset, num: 6",
)
FAULT = "rk_iommu fdab9000.iommu: Page fault at 0x00000000ffc00000 of type read"
KILLED = "Out of memory: Killed process {pid} (llama-server) total-vm:9000kB, anon-rss:8000kB"
IN_GROUP = "Memory cgroup out of memory: Killed process {pid} (llama-server) total-vm:9000kB"
NPU = "the NPU did not finish its work, and the kernel reset it"
IOMMU = "the NPU accessed memory that it may not (iommu page fault)"
MEMORY = "killed by the kernel: out of memory"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root" / "dev").mkdir(parents=True)
    (tmp_path / "root" / "dev" / "kmsg").write_text(record(TIMEOUT))
    return Machine(tmp_path / "root")


def record(lines: Sequence[str], *, ago_seconds: float = 0.0) -> str:
    at = round((time.monotonic() - ago_seconds) * 1e6)
    return "".join(f"3,{number},{at},-;{line}\n SUBSYSTEM=platform\n" for number, line in enumerate(lines))


def write(machine: Machine, *lines: str, ago_seconds: float = 0.0) -> None:
    with (machine.root / "dev" / "kmsg").open("a") as file:
        file.write(record(lines, ago_seconds=ago_seconds))


def crash(cause: str = "segmentation fault (SIGSEGV)", signal: str = "segmentation fault (SIGSEGV)") -> Diagnosis:
    return Diagnosis(cause=cause, advice="", last_words=("last",), signal=signal, exit_code=None)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (TIMEOUT, NPU),
        ((FAULT, *TIMEOUT), IOMMU),
        ((KILLED.format(pid=7),), MEMORY),
        ((IN_GROUP.format(pid=7),), MEMORY),
        ((KILLED.format(pid=8),), None),
        (("usb 1-1: new device", "RKNPU fdab0000.npu: Adding to iommu group 0"), None),
        ((), None),
    ],
)
def test_what_the_kernel_says_of_a_crash(machine: Machine, lines: Sequence[str], cause: str | None) -> None:
    log = KernelLog(machine)
    write(machine, "something else", *lines)
    log.close()
    write(machine, FAULT)  # of a later time
    diagnosis = log.explained(crash(), 7)
    assert diagnosis.cause == (cause or crash().cause)
    assert bool(diagnosis.advice) == bool(cause)
    told = [word for word in diagnosis.last_words if word.startswith("kernel: ")]
    assert set(told) <= {f"kernel: {line}" for line in lines}
    assert bool(told) == bool(cause)


def test_a_cause_of_the_engines_log_stays_and_the_lines_are_told(machine: Machine) -> None:
    log = KernelLog(machine)
    write(machine, *TIMEOUT)
    diagnosis = log.explained(crash("the NPU refused the work"), 7)
    assert (diagnosis.cause, diagnosis.last_words[1]) == ("the NPU refused the work", f"kernel: {TIMEOUT[0]}")
    log.close()


def test_what_happened_long_ago_explains_nothing(machine: Machine) -> None:
    log = KernelLog(machine)
    write(machine, *TIMEOUT, ago_seconds=3600)
    assert log.explained(crash(), 7) == crash()
    log.close()


def test_the_real_log_can_be_asked_or_not() -> None:
    log = KernelLog()
    log.close()
    assert log.explained(crash(), 7).cause


def test_without_the_device_the_journal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    asked = tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\necho "{FAULT}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert KernelLog(Machine(tmp_path)).explained(crash(), 7).cause == IOMMU
    assert "--dmesg" in asked.read_text()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert KernelLog(Machine(tmp_path)).explained(crash(), 7) == crash()


def test_the_diagnosis_of_a_child_has_it(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "KernelLog", functools.partial(KernelLog, machine))
    kmsg = machine.root / "dev" / "kmsg"

    async def body() -> Diagnosis:
        script = f"printf '%s' '{record(TIMEOUT)}' >> {kmsg}; echo hello; kill -SEGV $$"
        child = await Process.start(Launch(argv=("/bin/sh", "-c", script), socket=tmp_path / "s"), tmp_path / "log")
        await child.wait()
        assert child.diagnose() == child.diagnose()
        return child.diagnose()

    diagnosis = asyncio.run(body())
    assert diagnosis.cause == NPU
    assert diagnosis.last_words[:2] == ("hello", f"kernel: {TIMEOUT[0]}")


def test_a_child_that_was_stopped_has_no_cause(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "KernelLog", functools.partial(KernelLog, machine))

    async def body() -> Diagnosis:
        child = await Process.start(Launch(argv=("sleep", "1000"), socket=tmp_path / "s"), tmp_path / "log")
        write(machine, *TIMEOUT)
        await child.stop()
        return child.diagnose()

    assert asyncio.run(body()).cause == ""

"""The memory of a child is limited, so that a runaway ends and the machine does not."""

import asyncio
import sys
from pathlib import Path

import pytest
from scripted_placement import scripted_placement

from trilithon.engines.base import Launch, Placement
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import StartError
from trilithon.runtime.memory_need import limit_while_loading, spare_while_running
from trilithon.runtime.process import Process
from trilithon.runtime.runner import Runner

MIB = 1 << 20
# 64 MiB at a time up to 3 GiB, written to: without a limit it ends well and says so.
GROWS = "held = [bytearray(b'x' * (64 << 20)) for _ in range(48)]; print('grew', flush=True)"


def memory_limit(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "Max data size" in line)
    return int(line.split()[3])


class Grows(ScriptedEngine):
    """Its child takes more memory than any model of its size needs."""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        return Launch(argv=(sys.executable, "-c", GROWS), socket=folder / "wire.sock")


async def opened(folder: Path, engine: ScriptedEngine, memory_bytes: int | None = None) -> tuple[int, int]:
    """The limit of a runner's child, and its private memory."""
    async with Runner.open(
        engine, scripted_placement(), folder, start_seconds=60, hang_seconds=20, memory_bytes=memory_bytes
    ) as runner:
        pid = runner.process.pid
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return memory_limit(pid), int(status["VmData"].split()[0]) * 1024


def test_a_limit_of_the_launch_ends_the_child(tmp_path: Path) -> None:
    async def whole() -> str:
        launch = Launch(argv=(sys.executable, "-c", GROWS), socket=tmp_path / "s", memory_bytes=200 * MIB)
        process = await Process.start(launch, tmp_path / "log")
        await process.wait()
        return process.diagnose().cause

    assert asyncio.run(whole()) == "needs more than 200.0 MiB of memory"
    assert "grew" not in (tmp_path / "log").read_text()


def test_a_runaway_while_loading_needs_more_than_the_model(tmp_path: Path) -> None:
    limit = limit_while_loading(scripted_placement())
    assert limit < 48 * 64 * MIB * 2
    with pytest.raises(StartError, match=r"did not start: needs more than 200\.0 MiB of memory") as caught:
        asyncio.run(opened(tmp_path, Grows(), 200 * MIB))
    assert "engine_memory" in caught.value.advice


def test_a_loaded_engine_may_take_little_more_than_it_has(tmp_path: Path) -> None:
    limit, present = asyncio.run(opened(tmp_path, ScriptedEngine()))
    assert limit < limit_while_loading(scripted_placement())
    assert abs(limit - present - spare_while_running(scripted_placement())) < 64 * MIB


def test_the_user_sets_the_limit(tmp_path: Path) -> None:
    assert asyncio.run(opened(tmp_path, ScriptedEngine(), 700 * MIB))[0] == 700 * MIB

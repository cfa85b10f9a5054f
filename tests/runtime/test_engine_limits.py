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


@pytest.mark.parametrize(
    ("line", "is_own"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 11718.75 MB)", True),
        ("memory allocation of 4294967296 bytes failed", True),
        ("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache", False),
        ("ggml_vulkan: vk::Device::createBuffer: ErrorOutOfHostMemory", False),
        ("ggml_new_object: not enough space in the context's memory pool (needed 10, available 8)", False),
        ("E RKNN: rknn_create_mem: cannot allocate memory", False),
        ("DRM_IOCTL_RKNPU_MEM_CREATE failed: Cannot allocate memory", False),
        ("dma_heap: ioctl alloc failed: Cannot allocate memory", False),
        ("failed to map GEM object: out of memory", False),
    ],
)
def test_only_what_the_process_itself_did_not_get_is_over_its_limit(tmp_path: Path, line: str, is_own: bool) -> None:
    async def whole() -> str:
        program = (sys.executable, "-c", "import sys; sys.exit(sys.argv[1])", line)
        process = await Process.start(
            Launch(argv=program, socket=tmp_path / "s", memory_bytes=900 * MIB), tmp_path / "l"
        )
        await process.wait()
        return process.diagnose().cause

    cause = asyncio.run(whole())
    assert "memory" in cause
    assert cause.startswith("needs more than") is is_own, cause

import asyncio
import os
from pathlib import Path

import pytest

from trilithon.bench.pagecache import bring_in, evict, resident_fraction


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_123))
    return path


def test_reading_brings_it_in(file: Path) -> None:
    assert asyncio.run(bring_in(file)) == 1.0
    assert resident_fraction(file) == 1.0


def test_a_file_just_written_can_be_evicted(file: Path) -> None:
    if _is_in_memory(file):
        pytest.skip("the temporary folder is in memory, where nothing can be evicted")
    assert evict(file) < 0.01
    assert resident_fraction(file) < 0.01
    assert asyncio.run(bring_in(file)) == 1.0
    assert evict(file) < 0.01


def test_a_part_that_is_in_memory(file: Path) -> None:
    if _is_in_memory(file):
        pytest.skip("the temporary folder is in memory, where nothing can be evicted")
    evict(file)
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        stream.read(1)
    assert 0 < resident_fraction(file) < 0.9


def test_an_empty_file_is_all_there(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert asyncio.run(bring_in(empty)) == resident_fraction(empty) == 1.0
    assert evict(empty) == 1.0


def test_reading_can_be_stopped(file: Path) -> None:
    async def stopped() -> None:
        task = asyncio.create_task(bring_in(file))
        await asyncio.sleep(0)  # it has read its first piece
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())


def test_a_file_system_without_fsync() -> None:
    assert evict(Path("/proc/version")) == 1.0


@pytest.mark.parametrize("ask", [lambda path: asyncio.run(bring_in(path)), evict, resident_fraction])
def test_a_file_that_is_not_there(tmp_path: Path, ask) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        ask(tmp_path / "absent")


def _is_in_memory(path: Path) -> bool:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(holding, key=lambda each: len(each[0]))[1] in ("tmpfs", "ramfs")

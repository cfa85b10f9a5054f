"""Whether a download fits beside what other processes still have to write."""

import json
from collections import namedtuple
from pathlib import Path

import pytest

from trilithon.errors import NoRoom
from trilithon.models.store import space
from trilithon.models.store.locks import Lock, try_lock
from trilithon.models.store.safe_dir import SafeDir
from trilithon.models.store.space import remaining_bytes, require_room

MIB = 1 << 20
STEMS = [f"sha256-{digit * 64}" for digit in "abcd"]


@pytest.fixture
def safe_dir(tmp_path: Path) -> SafeDir:
    return SafeDir(tmp_path / "data" / "models")


def promised(safe_dir: SafeDir, stem: str, size_bytes: int | None) -> Lock:
    """Another process writes this file."""
    safe_dir.write(("partial", f"{stem}.json"), json.dumps({"size_bytes": size_bytes, "done": []}).encode())
    held = try_lock(safe_dir, f"receive-{stem}")
    assert held is not None
    return held


def free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> list[Path]:
    asked: list[Path] = []

    def usage(folder: Path) -> object:
        asked.append(folder)
        return namedtuple("Usage", "free")(size_bytes)

    monkeypatch.setattr(space.shutil, "disk_usage", usage)
    return asked


def test_a_reserve_stays_free(safe_dir: SafeDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = free(monkeypatch, 100 * MIB)
    require_room(safe_dir, 36 * MIB)
    assert asked == [tmp_path]  # the folder above that exists
    with pytest.raises(NoRoom) as caught:
        require_room(safe_dir, 36 * MIB + 1)
    assert str(caught.value) == (
        f"36.0 MiB are needed in {safe_dir.root}, 36.0 MiB are free; "
        "remove a model (trilithon rm NAME), or set TRILITHON_DATA to a folder on a larger disk"
    )
    free(monkeypatch, MIB)
    require_room(safe_dir, 0)
    with pytest.raises(NoRoom, match=r"1 B are needed in .*, 0 B are free"):
        require_room(safe_dir, 1)


def test_what_others_write_is_promised_to_them(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is stopped, of unknown size, counted by the caller, or no record."""
    safe_dir.write(("partial", "notes.json"), b"{}")
    safe_dir.write(("partial", f"{STEMS[0]}.txt"), b"{}")
    safe_dir.write(("partial", STEMS[0]), b"{}")
    stopped = promised(safe_dir, STEMS[0], 90 * MIB)
    stopped.release()
    held = [promised(safe_dir, STEMS[1], 20 * MIB), promised(safe_dir, STEMS[2], None)]
    held.append(promised(safe_dir, STEMS[3], 7 * MIB))
    asked = free(monkeypatch, 100 * MIB)
    require_room(safe_dir, 9 * MIB)
    with pytest.raises(NoRoom):
        require_room(safe_dir, 9 * MIB + 1)
    require_room(safe_dir, 29 * MIB, counted=(STEMS[1],))
    with pytest.raises(NoRoom):
        require_room(safe_dir, 29 * MIB + 1, counted=(STEMS[1],))
    assert set(asked) == {safe_dir.root}
    left = try_lock(safe_dir, f"receive-{STEMS[0]}")
    assert left is not None  # looking at it left it free
    for lock in (*held, left):
        lock.release()
    require_room(safe_dir, 36 * MIB)


def test_blocks_that_are_written_are_needed_no_more(safe_dir: SafeDir) -> None:
    assert remaining_bytes(safe_dir, STEMS[0], 5 * MIB) == 5 * MIB
    safe_dir.write(("partial", f"{STEMS[0]}.data"), bytes(2 * MIB))
    taken = (safe_dir.root / "partial" / f"{STEMS[0]}.data").stat().st_blocks * 512
    assert taken >= 2 * MIB
    assert remaining_bytes(safe_dir, STEMS[0], 5 * MIB) == 5 * MIB - taken
    assert remaining_bytes(safe_dir, STEMS[0], MIB) == 0

"""Named locks, within one process: each has a descriptor of its own, as between processes."""

import os
import threading
from pathlib import Path

import pytest

from trilithon.errors import ModelError
from trilithon.models.store import locks
from trilithon.models.store.locks import lock, lock_names, try_lock, wait_for_lock
from trilithon.models.store.safe_dir import SafeDir


@pytest.fixture
def safe_dir(tmp_path: Path) -> SafeDir:
    return SafeDir(tmp_path / "root")


def is_free(safe_dir: SafeDir, name: str, *, shared: bool = False) -> bool:
    held = try_lock(safe_dir, name, shared=shared)
    if held is not None:
        held.release()
    return held is not None


def test_one_holder_or_several_that_share(safe_dir: SafeDir) -> None:
    alone = try_lock(safe_dir, "a")
    assert alone is not None
    assert (is_free(safe_dir, "a"), is_free(safe_dir, "a", shared=True), is_free(safe_dir, "b")) == (False, False, True)
    alone.release()
    first, second = (try_lock(safe_dir, "a", shared=True) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (is_free(safe_dir, "a"), is_free(safe_dir, "a", shared=True)) == (False, True)
    first.release()
    assert not is_free(safe_dir, "a")
    second.release()
    assert is_free(safe_dir, "a")


def test_the_file_goes_with_its_last_holder(safe_dir: SafeDir) -> None:
    assert lock_names(safe_dir) == []
    alone, *sharing = (try_lock(safe_dir, name, shared=name == "s") for name in ("a", "s", "s"))
    (safe_dir.root / "locks/other").write_text("not a lock")
    assert lock_names(safe_dir) == ["a", "s"]
    assert alone is not None
    alone.release()
    assert lock_names(safe_dir) == ["s"]
    for held, names in zip(sharing, (["s"], []), strict=True):
        assert held is not None
        held.release()
        assert lock_names(safe_dir) == names
    assert (safe_dir.root / "locks/other").exists()


def test_a_lock_that_is_released_twice_releases_nothing_else(safe_dir: SafeDir) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    first = try_lock(safe_dir, "a")
    assert first is not None
    first.release()
    with lock(safe_dir, "a"):
        first.release()
        assert not is_free(safe_dir, "a")
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_lock_whose_file_cannot_be_removed_is_released(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    held = try_lock(safe_dir, "a")
    assert held is not None
    monkeypatch.setattr(os, "unlink", refuse)
    held.release()
    monkeypatch.undo()
    assert lock_names(safe_dir) == ["a"]
    assert is_free(safe_dir, "a")


def test_a_lock_on_a_file_that_was_removed_or_replaced_is_taken_again(
    safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the open and the lock another process may release it, and a third one may hold the new file."""
    path, changes, flock = safe_dir.root / "locks/a.lock", ["remove", "replace"], locks.flock

    def late(descriptor: int, *, shared: bool = False) -> bool:
        if changes and changes.pop(0) == "remove":
            path.unlink()
        elif changes == [] and path.exists() and not (path.parent / "old").exists():
            path.rename(path.parent / "old")
            path.write_text("")
        return flock(descriptor, shared=shared)

    monkeypatch.setattr(locks, "flock", late)
    before = len(set(Path("/proc/self/fd").iterdir()))
    held = try_lock(safe_dir, "a")
    assert held is not None
    monkeypatch.undo()
    assert len(set(Path("/proc/self/fd").iterdir())) == before + 1
    assert not is_free(safe_dir, "a")
    held.release()
    assert not path.exists()


def test_waiting_ends_with_the_release_or_when_it_is_given_up(safe_dir: SafeDir) -> None:
    held, calls = try_lock(safe_dir, "a"), []
    assert held is not None

    def release_at_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            held.release()

    acquired = wait_for_lock(safe_dir, "a", release_at_third)
    assert len(calls) == 3

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for_lock(safe_dir, "a", give_up)
    timer = threading.Timer(0.05, acquired.release)
    timer.start()
    with lock(safe_dir, "a"):
        assert not is_free(safe_dir, "a")
    timer.join()
    shared = wait_for_lock(safe_dir, "a", None, shared=True)
    assert is_free(safe_dir, "a", shared=True)
    shared.release()


def test_a_lock_is_released_when_its_work_fails(safe_dir: SafeDir) -> None:
    with pytest.raises(KeyboardInterrupt), lock(safe_dir, "a"):
        raise KeyboardInterrupt
    assert is_free(safe_dir, "a")


def test_a_folder_that_takes_no_locks_is_one_line(safe_dir: SafeDir) -> None:
    safe_dir.root.write_text("a file")
    with pytest.raises(ModelError, match="set TRILITHON_DATA"):
        try_lock(safe_dir, "a")

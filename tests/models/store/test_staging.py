"""Work folders, their makers alive and killed."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trilithon.models.store import staging as module
from trilithon.models.store.staging import clear_abandoned, publish, staging_dir

# Makes something in a work folder, with a tool that outlives it where that is asked for, and waits to be killed.
MAKER = """
import subprocess, sys, time
from pathlib import Path
from trilithon.models.store.staging import staging_dir

target, notes, with_tool = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "tool"
with staging_dir(target, notes) as work:
    (work.folder / "part").write_bytes(bytes(100_000))
    if with_tool:
        tool = subprocess.Popen(["sleep", "60"], pass_fds=[work.lock], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(tool.pid, flush=True)
    else:
        print(0, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "cache/conversions"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out/m.gguf"


def maker(target: Path, notes: Path, kind: str = "alone") -> tuple[subprocess.Popen[bytes], int]:
    words = [sys.executable, "-c", MAKER, str(target), str(notes), kind]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_work_folder_is_gone_at_the_end(target: Path, notes: Path) -> None:
    with staging_dir(target, notes) as work:
        assert work.folder.parent == target.parent
        (work.folder / "m.gguf").write_bytes(b"whole")
        publish(work.folder / "m.gguf", target)
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == b"whole"
    assert list(notes.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), staging_dir(target):
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == [target]


def test_a_note_of_the_folder_is_kept_while_it_is_used(target: Path, notes: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with staging_dir(target, notes) as staging:
        (note,) = notes.iterdir()
        assert (note.name, note.read_bytes()) == (staging.folder.name, os.fsencode(staging.folder))
        assert staging.folder.is_absolute()
        assert not os.get_inheritable(staging.lock)
        note.unlink()
    assert set(Path("/proc/self/fd").iterdir()) == before
    with staging_dir(target, target.parent) as staging:  # its own folder is the one with the notes
        assert list(target.parent.iterdir()) == [staging.folder]
        (staging.folder / "m.gguf").write_bytes(b"x")
        staging.folder.rename(target.parent / "moved")
    assert [path.name for path in target.parent.iterdir()] == ["moved"]


@pytest.mark.parametrize("links", [True, False])
def test_what_is_published_is_on_the_disk(target: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    sync = module.sync

    def noted(path: Path) -> None:
        synced.append((path, target.exists()))
        sync(path)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(module, "sync", noted)
    if not links:
        monkeypatch.setattr(module.os, "link", refuse)
    made = target.with_name("made")
    made.write_bytes(b"new")
    publish(made, target)
    assert synced == [(made, False), (target.parent, True)]
    assert target.read_bytes() == b"new"
    assert made.exists() == links
    made.write_bytes(b"newer")
    with pytest.raises(FileExistsError) as caught:
        publish(made, target)
    assert caught.value.errno == errno.EEXIST
    assert str(target) in str(caught.value)


def test_folders_that_lie_among_the_notes_are_cleared(notes: Path) -> None:
    left = notes / ".trilithon-abcd1234"
    (left / "sub").mkdir(parents=True)
    for name, size in (("a", 10_000), ("sub/b", 5000)):
        (left / name).write_bytes(bytes(size))
    size = sum((left / name).stat().st_blocks * 512 for name in ("a", "sub/b"))
    lock = os.open(left, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert clear_abandoned(notes) == (0, 0)
    os.close(lock)
    before = set(Path("/proc/self/fd").iterdir())
    assert clear_abandoned(notes, dry_run=True) == (1, size)
    assert left.exists()
    assert clear_abandoned(notes) == (1, size)
    assert list(notes.iterdir()) == []
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_notes_of_folders_that_are_gone_are_removed(notes: Path, target: Path) -> None:
    notes.mkdir(parents=True)
    gone, other = notes / ".trilithon-gone5678", notes / ".trilithon-other678"
    gone.write_bytes(os.fsencode(target.parent / gone.name))
    other.write_bytes(os.fsencode(target.parent / ".trilithon-name5678") + bytes(5000))
    (target.parent / ".trilithon-name5678").mkdir()
    assert clear_abandoned(notes, dry_run=True) == (0, 0)
    assert len(list(notes.iterdir())) == 2
    assert clear_abandoned(notes) == (0, 0)
    assert list(notes.iterdir()) == []
    assert (target.parent / ".trilithon-name5678").exists()


def test_a_folder_of_another_user_is_left_alone(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (notes / ".trilithon-abcd1234").mkdir(parents=True)
    user = os.geteuid()
    monkeypatch.setattr(module.os, "geteuid", lambda: user + 1)
    assert clear_abandoned(notes) == (0, 0)
    monkeypatch.undo()
    assert clear_abandoned(notes)[0] == 1


def test_a_file_system_without_locks(target: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a folder is in use is unknown there: none is removed, and a new one is used as it is."""

    def refuse(*_: object) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (notes / ".trilithon-abcd1234").mkdir(parents=True)
    monkeypatch.setattr(module, "try_lock", refuse)
    assert clear_abandoned(notes) == (0, 0)
    with staging_dir(target) as staging:
        assert staging.folder.is_dir()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("when", ["before the open", "before the lock", "locked by another"])
def test_a_folder_that_another_process_clears_is_made_again(
    target: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    whole_open, lock, made = os.open, module.try_lock, []

    def late_open(path: Path, flags: int) -> int:
        made.append(path)
        if when == "before the open" and len(made) == 1:
            path.rmdir()
        return whole_open(path, flags)

    def late_lock(descriptor: int) -> bool:
        if when == "locked by another" and len(made) == 1:
            return False
        if when == "before the lock" and len(made) == 1:
            made[0].rmdir()
        return lock(descriptor)

    monkeypatch.setattr(module.os, "open", late_open)
    monkeypatch.setattr(module, "try_lock", late_lock)
    before = set(Path("/proc/self/fd").iterdir())
    with staging_dir(target) as staging:
        assert staging.folder == made[1] != made[0]
        assert len(set(Path("/proc/self/fd").iterdir()) - before) == 1


@pytest.mark.parametrize("links", [True, False])
def test_what_is_there_stays(target: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr(module.os, "link", refuse)
    made = target.with_name("made")
    made.write_bytes(b"new")
    publish(made, target)
    made.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        publish(made, target)
    assert target.read_bytes() in (b"new", b"newer" if links else b"new")
    target.unlink()
    target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        publish(made, target)


def test_the_next_maker_clears_what_a_killed_one_left(target: Path, notes: Path) -> None:
    process, _ = maker(target, notes)
    left = list(target.parent.iterdir())
    assert len(left) == 1
    with staging_dir(target, notes) as work:  # its maker lives
        assert sorted(target.parent.iterdir()) == sorted([*left, work.folder])
    kill(process)
    with staging_dir(target, notes) as work:
        assert list(target.parent.iterdir()) == [work.folder]


def test_a_tool_that_outlives_its_maker_keeps_the_folder(target: Path, notes: Path) -> None:
    process, tool = maker(target, notes, "tool")
    kill(process)
    try:
        assert clear_abandoned(notes) == (0, 0)
        assert len(list(target.parent.iterdir())) == 1
    finally:
        os.kill(tool, 9)
    for _ in range(3000):  # until the kernel has closed what it held
        if clear_abandoned(notes)[0]:
            break
        time.sleep(0.02)
    assert list(target.parent.iterdir()) == []


def test_prune_finds_them_by_the_ledger(target: Path, notes: Path) -> None:
    process, _ = maker(target, notes)
    assert clear_abandoned(notes) == (0, 0)
    kill(process)
    for dry_run, stays in ((True, 1), (False, 0)):
        count, freed = clear_abandoned(notes, dry_run=dry_run)
        assert count == 1
        assert freed >= 100_000
        assert len(list(target.parent.iterdir())) == len(list(notes.iterdir())) == stays
    assert clear_abandoned(notes) == clear_abandoned(notes / "none") == (0, 0)


def test_nothing_else_is_removed(target: Path, notes: Path) -> None:
    """Whatever notes and names lead to."""
    mine = target.parent / "mine"
    for folder in (mine, target.parent / ".trilithon-notes", target.parent / ".converting-abcd1234"):
        folder.mkdir()
        (folder / "file").write_text("mine")
    (target.parent / ".trilithon-abcd1234").symlink_to(mine)
    (target.parent / ".trilithon-file5678").write_text("mine")
    notes.mkdir(parents=True)
    (notes / ".trilithon-abcd1234").write_bytes(os.fsencode(mine))
    (notes / ".trilithon-wxyz1234").write_bytes(os.fsencode(target.parent / ".trilithon-abcd1234"))
    (notes / ".trilithon-linked12").symlink_to(mine)
    (notes / ".trilithon-power123").write_bytes(bytes(300))
    (notes / "m.rkllm.log").write_text("log")
    before = sorted(str(each) for each in target.parent.rglob("*"))
    assert clear_abandoned(notes) == (0, 0)
    with staging_dir(target, notes):
        pass
    assert sorted(str(each) for each in target.parent.rglob("*")) == before
    assert sorted(each.name for each in notes.iterdir()) == [".trilithon-linked12", "m.rkllm.log"]

"""Work folders, their makers alive and killed."""

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


@pytest.mark.slow
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

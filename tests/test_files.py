"""Files that several processes share: nothing half written, nothing lost, nothing left behind."""

import ast
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_source import parsed

import trilithon
from trilithon.errors import ModelError, UserError
from trilithon.files import JsonStore, file_lock, read_text, replace_at, replace_file, save_text, sync, try_lock
from trilithon.models.store.model_store import ModelStore


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that bring bytes and names to the disk, in their order, each with the file's or the folder's name."""
    made: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def record(first: Any, *rest: Any, **named: Any) -> Any:
            path = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else Path(first)
            made.append(f"{name} {path.name}")
            return call(first, *rest, **named)

        return record

    for name in ("fsync", "fdatasync", "rename", "pwrite"):
        monkeypatch.setattr(os, name, recorded(name))
    return made


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_it_replaces_the_whole_text(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("long" * 1000, "short", ""):
        replace_file(file, text)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_the_old_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    replace_file(file, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, calls: list[str]
) -> None:
    replace_file(tmp_path / "a.json", "text")
    written, renamed, named = calls
    assert written.startswith("fsync .new-")
    assert renamed.startswith("rename .new-")
    assert named == f"fsync {tmp_path.name}"


def test_a_download_is_on_the_disk_before_its_record_says_so(tmp_path: Path, calls: list[str]) -> None:
    with ModelStore(tmp_path).receive(None, 4, key="x") as partial:
        calls.clear()
        partial.append(b"1234")
        partial.record()
        data, note = partial.path.name, f"{partial.path.stem}.json"
        assert calls == [
            f"pwrite {data}",
            f"fdatasync {data}",
            f"fsync .new-{note}",
            f"rename .new-{note}",
            "fsync partial",
        ]


def test_a_blob_is_on_the_disk_before_its_name(tmp_path: Path, calls: list[str]) -> None:
    ModelStore(tmp_path).add_bytes(b"1234")
    data = next(call.removeprefix("rename ") for call in calls if call.endswith(".data") and call.startswith("rename"))
    renamed = calls.index(f"rename {data}")
    assert f"fsync {data}" in calls[:renamed]
    assert "fsync blobs" in calls[renamed:]


def test_sync_flushes_files_and_folders(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "a").write_text("")
    sync(tmp_path / "a")
    sync(tmp_path)
    assert calls == ["fsync a", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_permissions_are_exact_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    for umask in (0, 0o077):
        before = os.umask(umask)
        try:
            replace_file(tmp_path / "a", "", mode=mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_link_planted_as_the_temporary_name_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / ".new-a").symlink_to(tmp_path / "other")
    folder = os.open(tmp_path, os.O_RDONLY)
    replace_at(folder, "a", b"new", temporary=".new-a")
    os.close(folder)
    assert ((tmp_path / "a").read_text(), (tmp_path / "other").read_text()) == ("new", "other")
    assert not (tmp_path / "a").is_symlink()


def test_a_link_in_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic link"), file_lock(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_lock_is_held_once_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trilithon.files import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "lock")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(BlockingIOError), file_lock(tmp_path / "lock", wait=False):
        pass
    process.kill()
    process.communicate()
    with file_lock(tmp_path / "lock", wait=False):
        pass


def test_a_shared_lock_keeps_out_exclusive_ones_alone(tmp_path: Path) -> None:
    descriptors = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    assert [try_lock(descriptor, shared=True) for descriptor in descriptors[:2]] == [True, True]
    assert not try_lock(descriptors[2])
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")
def test_a_lock_of_another_user_can_be_taken() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lock = Path(folder) / "lock"
        lock.write_text("")
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                lock.write_text("x")
            with file_lock(lock, wait=False):
                pass
        finally:
            os.seteuid(0)


def numbers(data: Any) -> list[int]:
    return [entry["number"] + 0 for entry in data]


def store_at(path: Path, **options: Any) -> JsonStore[list[int]]:
    return JsonStore(path=path, parse=numbers, fix="remove it", **options)


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = store_at(tmp_path / "data" / "a.json")
    assert store.read() is None
    store.write([{"number": 1}, {"number": 2}])
    assert store.read() == [1, 2]
    assert [path.name for path in store.path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"7", b"[{}]", b'[{"number": ""}]', b"\xff", b"[" * 10**5, b"1" * (2 << 20)]
)
def test_a_damaged_file_is_one_line_with_the_fix(tmp_path: Path, content: bytes) -> None:
    store = store_at(tmp_path / "a.json", error=ModelError)
    store.path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.json is damaged \(.*\); remove it$") as caught:
        store.read()
    assert "\n" not in str(caught.value)
    assert store.path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json cannot be read: Is a directory"):
        store_at(tmp_path / "a.json").read()


def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path / "a.json", closed_to=stat.S_IWOTH)
    store.write([])
    assert store.read() == []
    store.path.chmod(0o602)
    with pytest.raises(UserError, match=f"is open to other users of this machine; run: chmod 600 {store.path}"):
        store.read()


def test_a_folder_that_cannot_be_written_is_one_line_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = store_at(tmp_path / "file" / "a.json", error=ModelError)
    assert store.read() is None
    with pytest.raises(ModelError, match=r"cannot be written: .*TRILITHON_DATA"):
        store.write([])
    with pytest.raises(ModelError, match=r"cannot be written: .*TRILITHON_DATA"), store.locked():
        pass
    with pytest.raises(UserError, match="cannot be written"):
        save_text(store.path, "")


COUNT = """
import sys
from pathlib import Path
from trilithon.files import JsonStore
store = JsonStore(path=Path(sys.argv[1]), parse=int, fix="")
for _ in range(50):
    with store.locked():
        store.write((store.read() or 0) + 1)
"""


def test_processes_that_change_a_store_at_once_lose_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", COUNT, str(tmp_path / "a.json")]
    workers = [subprocess.Popen(words) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert (tmp_path / "a.json").read_text() == "200\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.lock"}


def test_a_text_may_have_just_so_many_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    assert read_text(tmp_path / "a", most_bytes=3) == "abc"
    with pytest.raises(ValueError, match="longer than 2 bytes"):
        read_text(tmp_path / "a", most_bytes=2)


def test_no_other_module_locks_files() -> None:
    root = Path(trilithon.__file__).parent
    locking = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in ("flock", "lockf")
    ]
    assert set(locking) == {"files.py"}

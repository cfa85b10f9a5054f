"""A file on its way into the store, without the store around it."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.errors import ModelError
from trilithon.models.store import partial as partial_module
from trilithon.models.store.partial import STEM, Partial, Range, blob_parts, hash_descriptor, merged, recorded_state
from trilithon.models.store.safe_dir import SafeDir

CONTENT = b"0123456789"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
STEM_ = f"sha256-{DIGEST}"


@pytest.fixture
def safe_dir(tmp_path: Path) -> SafeDir:
    return SafeDir(tmp_path / "root")


def partial_of(
    safe_dir: SafeDir,
    size_bytes: int | None = 10,
    *,
    digest: str | None = DIGEST,
    present: bool = False,
    on_complete: Callable[[str, os.stat_result], None] = lambda digest, status: None,
) -> Partial:
    return Partial(safe_dir, STEM_, digest=digest, size_bytes=size_bytes, present=present, on_complete=on_complete)


def note(safe_dir: SafeDir, state: Any, data: bytes = CONTENT) -> None:
    safe_dir.write(("partial", f"{STEM_}.json"), json.dumps(state).encode())
    safe_dir.write(("partial", f"{STEM_}.data"), data)


def test_names() -> None:
    assert blob_parts(DIGEST) == ("blobs", f"sha256-{DIGEST}")
    for wrong in ("", "../x", DIGEST.upper(), DIGEST + "0"):
        with pytest.raises(ModelError, match="not a SHA-256"):
            blob_parts(wrong)
    assert STEM.fullmatch(STEM_)
    assert not STEM.fullmatch(DIGEST)


@pytest.mark.parametrize(
    ("ranges", "new", "result"),
    [
        ((), (2, 5), ((2, 5),)),
        ((), (5, 5), ()),
        (((0, 3),), (5, 4), ((0, 3),)),
        (((0, 3),), (3, 5), ((0, 5),)),
        (((0, 3),), (4, 5), ((0, 3), (4, 5))),
        (((4, 5),), (0, 3), ((0, 3), (4, 5))),
        (((4, 5),), (0, 4), ((0, 5),)),
        (((0, 3), (6, 9)), (2, 7), ((0, 9),)),
        (((0, 9),), (2, 3), ((0, 9),)),
        (((2, 3), (5, 6)), (0, 9), ((0, 9),)),
    ],
)
def test_ranges_are_merged(ranges: tuple[Range, ...], new: Range, result: tuple[Range, ...]) -> None:
    assert merged(ranges, new) == result


@pytest.mark.parametrize(
    ("done", "size_bytes", "missing", "count"),
    [
        ((), None, ((0, None),), 0),
        ((), 10, ((0, 10),), 0),
        ((), 0, (), 0),
        (((0, 4),), None, ((4, None),), 4),
        (((2, 4), (6, 10)), 10, ((0, 2), (4, 6)), 6),
        (((0, 10),), 10, (), 10),
    ],
)
def test_what_is_missing(
    safe_dir: SafeDir, done: tuple[Range, ...], size_bytes: int | None, missing: tuple[Any, ...], count: int
) -> None:
    partial = partial_of(safe_dir, size_bytes)
    partial.done = done
    assert (partial.missing, partial.bytes_done) == (missing, count)
    partial.close()


@pytest.mark.parametrize(
    ("state", "size_bytes", "known", "done"),
    [
        ({"size_bytes": 10, "done": [[6, 8], [0, 2], [2, 3]]}, 10, 10, ((0, 3), (6, 8))),
        ({"size_bytes": 10, "done": [[6, 8]]}, None, 10, ((6, 8),)),
        ({"size_bytes": None, "done": [[6, 8]]}, 10, 10, ((6, 8),)),
        ({"size_bytes": None, "done": [[6, 8]]}, None, None, ((6, 8),)),
        ({"size_bytes": 11, "done": [[6, 8]]}, 10, 10, ()),
        ({"size_bytes": 10, "done": [[0, 2], [6, 80]]}, 10, 10, ((0, 2), (6, 10))),
        ({"size_bytes": 7, "done": [[0, 2], [6, 80]]}, 7, 7, ((0, 2), (6, 7))),
        ({"size_bytes": 20, "done": [[0, 2], [6, 80]]}, 20, 20, ((0, 2), (6, 10))),  # the file has 10 bytes
        ({"size_bytes": 20, "done": [[10, 12]]}, 20, 20, ()),
        ({"size_bytes": 0, "done": []}, None, 0, ()),
        ({"size_bytes": 10, "done": [[0, True]]}, 10, 10, ()),
        ({"size_bytes": 10, "done": [[0, 2.0]]}, 10, 10, ()),
        ({"size_bytes": 10, "done": [[-1, 2]]}, 10, 10, ()),
        ({"size_bytes": 10, "done": [[0, 1, 2]]}, 10, 10, ()),
        ({"size_bytes": 10, "done": 5}, 10, 10, ()),
        ({"size_bytes": "10", "done": [[0, 2]]}, 10, 10, ()),
        ({"done": [[0, 2]]}, 10, 10, ()),
        ([], 10, 10, ()),
    ],
)
def test_what_an_earlier_process_left_is_resumed(
    safe_dir: SafeDir, state: Any, size_bytes: int | None, known: int | None, done: tuple[Range, ...]
) -> None:
    note(safe_dir, state)
    partial = partial_of(safe_dir, size_bytes)
    assert (partial.size_bytes, partial.done, partial.present) == (known, done, False)
    assert partial.path == safe_dir.root / "partial" / f"{STEM_}.data"
    partial.close()


def test_a_record_that_is_missing_or_too_large_says_nothing(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded_state(safe_dir, STEM_) == (None, ())
    note(safe_dir, {"size_bytes": 3, "done": [[0, 1]]})
    assert recorded_state(safe_dir, STEM_) == (3, ((0, 1),))
    monkeypatch.setattr(partial_module, "_MOST_STATE_BYTES", 5)
    with pytest.raises(OSError, match="too large"):
        recorded_state(safe_dir, STEM_)


def test_written_ranges_survive_a_close(safe_dir: SafeDir) -> None:
    partial = partial_of(safe_dir)
    partial.append(CONTENT[:2])
    partial.write_at(5, memoryview(CONTENT)[5:7])
    partial.append(CONTENT[2:3])
    assert partial.done == ((0, 3), (5, 7))
    partial.close()
    partial.close()
    assert recorded_state(safe_dir, STEM_) == (10, ((0, 3), (5, 7)))
    with pytest.raises(ValueError, match="closed"):
        partial.append(b"x")
    again = partial_of(safe_dir)
    assert again.done == ((0, 3), (5, 7))
    again.write_at(0, CONTENT)
    again.close(record=False)
    assert recorded_state(safe_dir, STEM_) == (10, ((0, 3), (5, 7)))


def test_a_file_into_which_nothing_was_written_has_no_record(safe_dir: SafeDir) -> None:
    partial_of(safe_dir).close()
    assert safe_dir.names(("partial",)) == [f"{STEM_}.data"]


def test_bytes_are_appended_to_those_from_the_beginning(safe_dir: SafeDir) -> None:
    partial = partial_of(safe_dir)
    partial.write_at(4, CONTENT[4:])
    partial.append(CONTENT[:3])
    assert partial.done == ((0, 3), (4, 10))
    partial.append(CONTENT[3:4])
    assert partial.path.read_bytes() == CONTENT
    assert partial.finish() == DIGEST


@pytest.mark.parametrize("size_bytes", [10, None])
def test_no_more_bytes_than_announced(safe_dir: SafeDir, size_bytes: int | None) -> None:
    partial = partial_of(safe_dir, size_bytes)
    partial.write_at(8, b"89")
    if size_bytes is None:
        partial.write_at(8, b"89a")
    else:
        with pytest.raises(ModelError, match="more than the announced 10 bytes"):
            partial.write_at(8, b"89a")
    partial.close()


def test_when_ranges_are_recorded(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_RECORD_BYTES", 4)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    partial = partial_of(safe_dir)

    def recorded() -> int:
        return sum(end for _, end in recorded_state(safe_dir, STEM_)[1])

    steps = ((100.0, 3, 0), (100.0, 4, 4), (105.0, 7, 4), (105.1, 8, 8), (110.0, 9, 8), (110.2, 10, 10))
    for now, end, expected in steps:
        partial.append(CONTENT[partial.bytes_done : end])
        assert recorded() == expected, (now, end)
    partial.close()


def test_a_restart_drops_everything(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_RECORD_BYTES", 4)
    partial = partial_of(safe_dir)
    partial.restart()  # without a record
    partial.append(CONTENT[:5])
    partial.append(CONTENT[5:8])
    assert recorded_state(safe_dir, STEM_)[1] == ((0, 5),)
    partial.restart()
    assert (partial.done, partial.path.stat().st_size) == ((), 0)
    assert safe_dir.names(("partial",)) == [f"{STEM_}.data"]
    partial.append(CONTENT[:3])
    assert recorded_state(safe_dir, STEM_)[1] == ()  # the three bytes before do not count any more
    partial.append(CONTENT[3:4])
    assert recorded_state(safe_dir, STEM_)[1] == ((0, 4),)
    partial.close()


@pytest.mark.parametrize(
    ("known", "written", "expected", "kept"),
    [(None, 4, 4, True), (None, 4, 3, False), (10, 4, 10, True), (10, 4, 11, False), (None, 0, 0, True)],
)
def test_bytes_of_another_size_are_dropped(
    safe_dir: SafeDir, known: int | None, written: int, expected: int, kept: bool
) -> None:
    partial = partial_of(safe_dir, known)
    partial.append(CONTENT[:written])
    partial.expect(expected)
    assert (partial.size_bytes, partial.bytes_done) == (expected, written if kept else 0)
    partial.close()


def test_a_complete_file_becomes_a_blob(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, bool]] = []
    blob = safe_dir.root / "blobs" / f"sha256-{DIGEST}"
    sync = os.fsync

    def synced(descriptor: int) -> None:
        steps.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, blob.exists()))
        sync(descriptor)

    completed: list[tuple[str, int, bool]] = []

    def complete(digest: str, status: os.stat_result) -> None:
        completed.append((digest, status.st_size, blob.exists()))
        assert recorded_state(safe_dir, STEM_) == (10, ((0, 10),))  # a kill from here on loses nothing

    partial = partial_of(safe_dir, on_complete=complete)
    partial.append(CONTENT)
    monkeypatch.setattr(os, "fsync", synced)
    seen: list[tuple[int, int]] = []
    assert partial.finish(lambda done, total: seen.append((done, total))) == DIGEST
    assert (f"{STEM_}.data", False) in steps  # on the disk before it has the name
    assert steps[-1] == ("partial", True)
    assert completed == [(DIGEST, 10, False)]
    assert seen == [(10, 10)]
    assert blob.read_bytes() == CONTENT
    assert blob.stat().st_mode & 0o777 == 0o444
    assert safe_dir.names(("partial",)) == []
    with pytest.raises(ValueError, match="closed"):
        partial.record()


def test_an_empty_file_of_unknown_size_is_a_blob(safe_dir: SafeDir) -> None:
    digest = partial_of(safe_dir, None, digest=None).finish()
    assert digest == hashlib.sha256(b"").hexdigest()
    assert safe_dir.read(blob_parts(digest), 0) == b""


def test_a_disk_that_takes_a_part_of_a_write_gets_the_rest(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: write(descriptor, data[:3], at))
    partial = partial_of(safe_dir)
    partial.append(CONTENT)
    assert partial.finish() == DIGEST


@pytest.mark.parametrize("size_bytes", [None, 10])
def test_an_old_tail_is_cut_off(safe_dir: SafeDir, size_bytes: int | None) -> None:
    note(safe_dir, {"size_bytes": None, "done": []}, b"longer than the content")
    partial = partial_of(safe_dir, size_bytes, digest=None)
    partial.append(CONTENT)
    assert partial.finish() == DIGEST
    assert (safe_dir.root / "blobs" / f"sha256-{DIGEST}").read_bytes() == CONTENT


@pytest.mark.parametrize(("written", "what"), [(0, "0 B of 10 B"), (9, "9 B of 10 B")])
def test_a_file_with_a_gap_is_no_blob(safe_dir: SafeDir, written: int, what: str) -> None:
    partial = partial_of(safe_dir)
    partial.append(CONTENT[:written])
    with pytest.raises(ModelError) as caught:
        partial.finish()
    assert str(caught.value) == f"only {what} were received; pull it again to resume"
    partial.close()
    assert recorded_state(safe_dir, STEM_)[1] == (((0, 9),) if written else ())


def test_a_gap_in_a_file_of_unknown_size_is_found(safe_dir: SafeDir) -> None:
    partial = partial_of(safe_dir, None, digest=None)
    partial.write_at(5, CONTENT[5:])
    with pytest.raises(ModelError, match="only 5 B of 10 B"):
        partial.finish()
    partial.close()


def test_a_wrong_checksum_removes_the_file(safe_dir: SafeDir) -> None:
    completed: list[str] = []
    partial = partial_of(safe_dir, on_complete=lambda digest, _: completed.append(digest))
    partial.append(b"9876543210")
    actual = hashlib.sha256(b"9876543210").hexdigest()
    with pytest.raises(ModelError) as caught:
        partial.finish()
    assert str(caught.value) == f"its SHA-256 is {actual} and should be {DIGEST}; pull it again"
    assert (safe_dir.names(("partial",)), safe_dir.names(("blobs",)), completed) == ([], [], [])


def test_a_file_that_is_present_is_complete(safe_dir: SafeDir) -> None:
    note(safe_dir, {"size_bytes": 10, "done": [[0, 5]]})
    safe_dir.write(("partial", f".new-{STEM_}.json"), b"{")
    before = set(Path("/proc/self/fd").iterdir())
    partial = partial_of(safe_dir, present=True)
    assert (partial.present, partial.missing, partial.bytes_done, partial.done) == (True, (), 0, ())
    assert safe_dir.names(("partial",)) == []
    assert partial.finish() == DIGEST
    assert partial_of(safe_dir, digest=None, present=True).finish() == ""
    partial.close()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_discarded_file_leaves_nothing(safe_dir: SafeDir) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    partial = partial_of(safe_dir)
    partial.append(CONTENT)
    partial.record()
    partial.discard()
    assert safe_dir.names(("partial",)) == []
    assert set(Path("/proc/self/fd").iterdir()) == before
    partial.discard()


def test_an_error_of_the_disk_is_one_line(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    partial = partial_of(safe_dir)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ModelError, match="no space left"):
        partial.append(b"x")
    assert partial.done == ()
    monkeypatch.undo()
    partial.append(CONTENT)
    for function, call in (("fdatasync", partial.record), ("ftruncate", partial.restart), ("fsync", partial.finish)):
        monkeypatch.setattr(os, function, full)
        with pytest.raises(ModelError, match="no space left"):
            call()
        monkeypatch.undo()
    partial.close(record=False)


def test_a_file_is_hashed_from_the_disk_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_CHUNK_BYTES", 4)
    advice: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *it: advice.append(it))
    (tmp_path / "file").write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    assert hash_descriptor(descriptor, lambda done, total: seen.append((done, total))) == DIGEST
    assert hash_descriptor(descriptor, None) == DIGEST
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert advice == [(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)] * 2

    def longer(done: int, total: int) -> None:
        with (tmp_path / "file").open("ab") as file:
            file.write(b"x" if done < 10 else b"")

    with pytest.raises(OSError, match="changed while it was read") as caught:
        hash_descriptor(descriptor, longer)
    assert caught.value.errno == errno.EIO
    os.close(descriptor)

import hashlib
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from trilithon.errors import ModelError
from trilithon.models.files.hashing import file_sha256, known_sha256

CONTENT = os.urandom(5 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


def test_the_second_time_nothing_is_read(file: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    assert file_sha256(file, cache, lambda done, total: seen.append((done, total))) == DIGEST
    assert seen == [(4 << 20, 5 << 20), (5 << 20, 5 << 20)]
    assert file_sha256(file, cache, lambda done, total: seen.append((done, total))) == DIGEST
    assert len(seen) == 2


def test_what_is_known_is_told_without_reading(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert known_sha256(file, cache) == ""
    file_sha256(file, cache)
    assert known_sha256(file, cache) == DIGEST
    with file.open("ab") as more:
        more.write(b"x")
    assert known_sha256(file, cache) == ""
    with pytest.raises(ModelError, match="cannot be read"):
        known_sha256(tmp_path / "nothing", cache)


def test_a_changed_file_is_read_again(file: Path, tmp_path: Path) -> None:
    file_sha256(file, tmp_path / "cache")
    before = file.stat()
    file.write_bytes(b"x" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file_sha256(file, tmp_path / "cache") == hashlib.sha256(b"x" * before.st_size).hexdigest()


def test_a_file_that_changes_meanwhile_is_refused(file: Path, tmp_path: Path) -> None:
    def meddle(done: int, total: int) -> None:
        with file.open("ab") as end:
            end.write(b"!")

    with pytest.raises(ModelError, match="changed while it was read"):
        file_sha256(file, tmp_path / "cache", meddle)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file or directory; check its name"):
        file_sha256(tmp_path / "none", tmp_path / "cache")


def test_a_ruined_cache_is_made_anew(file: Path, tmp_path: Path) -> None:
    database = tmp_path / "hashes.sqlite"
    database.write_bytes(b"this is no database" * 100)
    assert file_sha256(file, tmp_path) == DIGEST
    assert file_sha256(file, tmp_path) == DIGEST
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT sha256 FROM sha256").fetchall() == [(DIGEST,)]
    connection.close()


def test_no_cache_at_all_still_gives_the_digest(file: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.touch()
    assert file_sha256(file, in_the_way) == DIGEST


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(24)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 1000)
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        digests = pool.starmap(file_sha256, [(path, tmp_path / "cache") for path in files], chunksize=1)
    assert digests == expected
    with sqlite3.connect(tmp_path / "cache" / "hashes.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM sha256").fetchone() == (24,)
    connection.close()

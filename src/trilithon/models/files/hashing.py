"""SHA-256 of files, remembered in a database: hashing gigabytes takes a board half a minute."""

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from trilithon.errors import ModelError

__all__ = ["Progress", "file_sha256", "known_sha256", "remember_sha256"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes."""

_CHUNK_BYTES = 4 << 20
_SCHEMA = """CREATE TABLE IF NOT EXISTS sha256 (
    device INTEGER, inode INTEGER, size INTEGER, changed_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)
)"""


def file_sha256(path: Path, cache_folder: Path, progress: Progress | None = None) -> str:
    """The hexadecimal digest of a file, from `cache_folder`/hashes.sqlite while device, inode, size and modification
    time are the same. Without a usable cache it is computed. Raises ModelError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            key = _identity(file.fileno())
            known = _look_up(cache_folder, key)
            if known is not None:
                return known
            digest = _digest(file.fileno(), key[2], progress)
            if _identity(file.fileno()) != key:
                raise ModelError("{path} changed while it was read; wait until it is complete", path=path)
    except OSError as error:
        raise ModelError(
            "{path} cannot be read: {reason}; check its name and permissions", path=path, reason=error.strerror
        ) from error
    _remember(cache_folder, key, digest)
    return digest


def known_sha256(path: Path, cache_folder: Path) -> str:
    """The digest if it is remembered, else an empty text. The content is not read. Raises ModelError."""
    try:
        return _look_up(cache_folder, _key(path.stat())) or ""
    except OSError as error:
        raise ModelError(
            "{path} cannot be read: {reason}; check its name and permissions", path=path, reason=error.strerror
        ) from error


def remember_sha256(cache_folder: Path, status: os.stat_result, digest: str) -> None:
    """Remember the digest of a file that was just read."""
    _remember(cache_folder, _key(status), digest)


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    return _key(os.fstat(descriptor))


def _key(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest(descriptor: int, size: int, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done = 0
    # The loop ends also for a file that grows meanwhile; its digest is dropped by the caller.
    while done <= size and (chunk := os.read(descriptor, _CHUNK_BYTES)):
        digest.update(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, size)
    return digest.hexdigest()


def _open(cache_folder: Path) -> sqlite3.Connection:
    """SQLite, so that several processes can write; each waits up to ten seconds for the others."""
    cache_folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(cache_folder / "hashes.sqlite", timeout=10)
    try:
        database.execute(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _look_up(cache_folder: Path, key: tuple[int, int, int, int]) -> str | None:
    try:
        with closing(_open(cache_folder)) as database:
            row = database.execute(
                "SELECT sha256 FROM sha256 WHERE device = ? AND inode = ? AND size = ? AND changed_ns = ?", key
            ).fetchone()
    except (OSError, sqlite3.Error):
        return None  # without a readable cache the digest is computed
    return str(row[0]) if row else None


def _remember(cache_folder: Path, key: tuple[int, int, int, int], digest: str) -> None:
    try:
        with closing(_open(cache_folder)) as database, database:
            database.execute("INSERT OR REPLACE INTO sha256 VALUES (?, ?, ?, ?, ?)", (*key, digest))
    except (OSError, sqlite3.OperationalError):
        return  # without a writable cache the next call computes the digest again
    except sqlite3.DatabaseError:
        # A damaged database is removed: it would make every later run compute again, and it is only a cache.
        with suppress(OSError):  # in a read-only folder it stays
            (cache_folder / "hashes.sqlite").unlink()

"""A file on its way into the store: written in any order, resumed after a kill, complete when its checksum is right.

Ranges are recorded as written after they were flushed to the disk. A power cut costs a few seconds of work, and never
leaves a gap that counts as data."""

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from trilithon.errors import ModelError
from trilithon.files import TEMPORARY
from trilithon.models.files.hashing import Progress
from trilithon.models.store.manifest import require_digest
from trilithon.models.store.safe_dir import SafeDir, translated
from trilithon.units import format_bytes

__all__ = ["PARTIAL_FOLDER", "STEM", "Partial", "Range", "blob_parts", "hash_descriptor", "merged", "recorded_state"]

Range = tuple[int, int]
"""The first byte, and the one after the last."""

PARTIAL_FOLDER = "partial"
STEM = re.compile(r"(?:sha256|key)-[0-9a-f]{64}|new-[0-9]{1,10}-[0-9a-f]{16}")
"""The names of partial files without their suffix; other files in the folder are not Trilithon's."""

_RECORD_BYTES = 64 << 20
_RECORD_SECONDS = 5.0
_CHUNK_BYTES = 4 << 20
_MOST_STATE_BYTES = 4 << 20


def blob_parts(digest: str) -> tuple[str, str]:
    """The path of a blob. Raises ModelError for a text that is not a digest."""
    require_digest(digest)
    return "blobs", f"sha256-{digest}"


class Partial:
    """Made by `ModelStore.receive`. Several threads may write at the same time.

    `present` means that the store has the blob already: nothing is missing, and `finish` only returns its digest.
    `size_bytes` is None until it is known. `done` are the ranges that are written, in order and without overlaps,
    including those of a process that was killed. Methods raise ModelError for errors of the disk."""

    def __init__(
        self,
        safe_dir: SafeDir,
        stem: str,
        *,
        digest: str | None,
        size_bytes: int | None,
        present: bool,
        on_complete: Callable[[str, os.stat_result], None],
    ):
        self.present, self.size_bytes = present, size_bytes
        self.path = safe_dir.path((PARTIAL_FOLDER, f"{stem}.data"))
        self.done: tuple[Range, ...] = ()
        self._safe_dir, self._stem, self._digest, self._on_complete = safe_dir, stem, digest, on_complete
        self._lock, self._recording = threading.Lock(), threading.Lock()
        self._recorded_at, self._unrecorded_bytes = time.monotonic(), 0
        self._descriptor: int | None = None
        if present:
            self.discard()  # left by a process that was killed right after it renamed the blob
        else:
            self._descriptor = safe_dir.open((PARTIAL_FOLDER, f"{stem}.data"), os.O_RDWR | os.O_CREAT)
            self._resume(os.fstat(self._descriptor).st_size)

    @property
    def bytes_done(self) -> int:
        return sum(end - start for start, end in self.done)

    @property
    def missing(self) -> tuple[tuple[int, int | None], ...]:
        """The ranges still to be written, in order. The end of the last one is None while the size is unknown."""
        if self.present:
            return ()
        gaps: list[tuple[int, int | None]] = []
        at = 0
        for start, end in self.done:
            if start > at:
                gaps.append((at, start))
            at = end
        if self.size_bytes is None or at < self.size_bytes:
            gaps.append((at, self.size_bytes))
        return tuple(gaps)

    def expect(self, size_bytes: int) -> None:
        """Set the size. Bytes that were kept of a file of another size are dropped."""
        if self.size_bytes not in (None, size_bytes) or (self.done and self.done[-1][1] > size_bytes):
            self.restart()
        self.size_bytes = size_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if self.size_bytes is not None and offset + len(data) > self.size_bytes:
            raise ModelError(
                "received more than the announced {size_bytes} bytes; pull it again", size_bytes=self.size_bytes
            )
        with translated(self._safe_dir.root):
            at, rest = offset, memoryview(data)
            while rest:
                written = os.pwrite(self._open_descriptor(), rest, at)
                at, rest = at + written, rest[written:]
        with self._lock:
            self.done = merged(self.done, (offset, offset + len(data)))
            self._unrecorded_bytes += len(data)
            due = self._unrecorded_bytes >= _RECORD_BYTES or time.monotonic() - self._recorded_at > _RECORD_SECONDS
        if due:
            self.record()

    def append(self, data: bytes | memoryview) -> None:
        """Write after the range that begins at byte 0."""
        self.write_at(self.done[0][1] if self.done and self.done[0][0] == 0 else 0, data)

    def record(self) -> None:
        """Flush the written ranges to the disk, and then record them."""
        with self._recording, translated(self._safe_dir.root):
            with self._lock:
                done, self._unrecorded_bytes, self._recorded_at = self.done, 0, time.monotonic()
            os.fdatasync(self._open_descriptor())
            state = {"size_bytes": self.size_bytes, "done": done}
            self._safe_dir.write((PARTIAL_FOLDER, f"{self._stem}.json"), json.dumps(state).encode())

    def restart(self) -> None:
        """Drop everything that is written."""
        with self._recording, translated(self._safe_dir.root):
            # The record goes first: data without a record does not count if the process is killed in between.
            with suppress(FileNotFoundError):
                self._safe_dir.unlink((PARTIAL_FOLDER, f"{self._stem}.json"))
            with self._lock:
                os.ftruncate(self._open_descriptor(), 0)
                self.done, self._unrecorded_bytes = (), 0

    def finish(self, progress: Progress | None = None) -> str:
        """Make it a blob, and return its digest. Raises ModelError when bytes are missing or the checksum is wrong.

        The file is read again from the disk and not from memory, as far as the kernel allows: this finds memory cards
        that lose data."""
        if self.present:
            return self._digest or ""
        if self.size_bytes is None:
            self.size_bytes = self.done[-1][1] if self.done else 0
        if self.missing:
            size = format_bytes(self.size_bytes)
            raise ModelError(
                "only {size} of {whole} were received; pull it again to resume",
                size=format_bytes(self.bytes_done),
                whole=size,
            )
        self.record()
        with translated(self._safe_dir.root):
            descriptor = self._open_descriptor()
            os.ftruncate(descriptor, self.size_bytes)
            os.fsync(descriptor)
            digest = hash_descriptor(descriptor, progress)
            if self._digest not in (None, digest):
                self.discard()
                raise ModelError(
                    "its SHA-256 is {digest} and should be {announced}; pull it again",
                    digest=digest,
                    announced=self._digest,
                )
            self._place(digest)
        return digest

    def discard(self) -> None:
        """Remove the file and its record."""
        for name in (f"{self._stem}.json", f"{self._stem}.data", f"{TEMPORARY}{self._stem}.json"):
            with suppress(FileNotFoundError):
                self._safe_dir.unlink((PARTIAL_FOLDER, name))
        self.close(record=False)

    def close(self, *, record: bool = True) -> None:
        """Close the file. What is written stays, for the next download to resume."""
        if self._descriptor is None:
            return
        try:
            if record and self.done:
                self.record()
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError("the partial file is closed")
        return self._descriptor

    def _place(self, digest: str) -> None:
        """The last step: give the file its final name."""
        descriptor = self._open_descriptor()
        with suppress(OSError):  # some file systems have no permissions
            os.fchmod(descriptor, 0o444)
        self._on_complete(digest, os.fstat(descriptor))
        self._safe_dir.rename((PARTIAL_FOLDER, f"{self._stem}.data"), blob_parts(digest))
        with suppress(FileNotFoundError):
            self._safe_dir.unlink((PARTIAL_FOLDER, f"{self._stem}.json"))
        self.close(record=False)

    def _resume(self, actual_size: int) -> None:
        """Resume what an earlier process left, as far as its record and its file of `actual_size` bytes agree."""
        size, done = recorded_state(self._safe_dir, self._stem)
        if self.size_bytes is not None and size not in (None, self.size_bytes):
            done = ()
        end_limit = actual_size if self.size_bytes is None else min(actual_size, self.size_bytes)
        self.done = tuple((start, min(end, end_limit)) for start, end in done if start < end_limit)
        self.size_bytes = size if self.size_bytes is None else self.size_bytes


def recorded_state(safe_dir: SafeDir, stem: str) -> tuple[int | None, tuple[Range, ...]]:
    """The recorded size and ranges; None and no ranges when there is no valid record."""
    try:
        state = json.loads(safe_dir.read((PARTIAL_FOLDER, f"{stem}.json"), _MOST_STATE_BYTES))
        size, pairs = state["size_bytes"], [(start, end) for start, end in state["done"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None, ()
    numbers = [number for pair in pairs for number in pair] + ([] if size is None else [size])
    if any(type(number) is not int or number < 0 for number in numbers):
        return None, ()
    done: tuple[Range, ...] = ()
    for pair in pairs:
        done = merged(done, pair)
    return size, done


def merged(ranges: Sequence[Range], new: Range) -> tuple[Range, ...]:
    """The ranges with `new`: sorted, without overlaps and empty ranges."""
    start, end = new
    if start >= end:
        return tuple(ranges)
    separate = []
    for other in ranges:
        if other[1] < start or other[0] > end:
            separate.append(other)
        else:
            start, end = min(start, other[0]), max(end, other[1])
    return tuple(sorted([*separate, (start, end)]))


def hash_descriptor(descriptor: int, progress: Progress | None) -> str:
    """SHA-256 of a file, read from the disk where the kernel drops it from memory. Raises OSError."""
    size, at = os.fstat(descriptor).st_size, 0
    digest = hashlib.sha256()
    with suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    while chunk := os.pread(descriptor, _CHUNK_BYTES, at):
        digest.update(chunk)
        at += len(chunk)
        if progress is not None:
            progress(at, size)
    if at != size:
        raise OSError(errno.EIO, "changed while it was read")
    return digest.hexdigest()

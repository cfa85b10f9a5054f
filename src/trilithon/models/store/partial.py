"""A file on its way into the store: written in any order, taken up again after a kill, final only when its sum fits.

What counts as written is on the disk before it is noted, so that a power cut can cost a few seconds' work and never
leaves a hole that is taken for data.
"""

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

__all__ = [
    "PARTIAL_FOLDER",
    "STEM",
    "Partial",
    "Range",
    "blob_parts",
    "hash_descriptor",
    "merged",
    "state_of",
]

Range = tuple[int, int]
"""First byte, and the one after the last."""

PARTIAL_FOLDER = "partial"
STEM = re.compile(r"(?:sha256|key)-[0-9a-f]{64}|new-[0-9]{1,10}-[0-9a-f]{16}")
"""What partial files are called before their suffix; anything else in the folder is not ours."""

_NOTE_BYTES = 64 << 20
_NOTE_SECONDS = 5.0
_PIECE_BYTES = 4 << 20
_MOST_STATE_BYTES = 4 << 20


def blob_parts(digest: str) -> tuple[str, str]:
    """The way to a blob. Raises ModelError for what is no digest."""
    require_digest(digest)
    return "blobs", f"sha256-{digest}"


class Partial:
    """Made by `ModelStore.receive`. Threads may write at the same time.

    `present`: the store has the blob already, nothing is missing, and `finish` only says its digest. `size_bytes` is
    None until it is known; `done` are the ranges that are written, also those of a process that was killed.
    """

    def __init__(
        self,
        rooted: SafeDir,
        stem: str,
        *,
        digest: str | None,
        size_bytes: int | None,
        present: bool,
        keep: Callable[[str, os.stat_result], None],
    ):
        self.present, self.size_bytes = present, size_bytes
        self.path = rooted.path((PARTIAL_FOLDER, f"{stem}.data"))
        self.done: tuple[Range, ...] = ()
        self._rooted, self._stem, self._digest, self._keep = rooted, stem, digest, keep
        self._guard, self._noting = threading.Lock(), threading.Lock()
        self._noted_at, self._unnoted_bytes = time.monotonic(), 0
        self._descriptor = -1
        if present:
            self.discard()  # of whoever was killed between the blob's name and the end, or before it came another way
        else:
            self._descriptor = rooted.open((PARTIAL_FOLDER, f"{stem}.data"), os.O_RDWR | os.O_CREAT)
            self._take_up()

    @property
    def bytes_done(self) -> int:
        return sum(end - start for start, end in self.done)

    @property
    def missing(self) -> tuple[tuple[int, int | None], ...]:
        """The ranges still to be written, in order. While the size is unknown the last one has no end."""
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
        """The size is known now. What was kept of a file of another size is another file: it goes."""
        if self.size_bytes not in (None, size_bytes) or (self.done and self.done[-1][1] > size_bytes):
            self.restart()
        self.size_bytes = size_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if self.size_bytes is not None and offset + len(data) > self.size_bytes:
            raise ModelError(f"more bytes came than the {self.size_bytes} that were announced; pull it again")
        with translated(self._rooted.root):
            at, rest = offset, memoryview(data)
            while rest:
                written = os.pwrite(self._open_descriptor(), rest, at)
                at, rest = at + written, rest[written:]
        with self._guard:
            self.done = merged(self.done, (offset, offset + len(data)))
            self._unnoted_bytes += len(data)
            due = self._unnoted_bytes >= _NOTE_BYTES or time.monotonic() - self._noted_at > _NOTE_SECONDS
        if due:
            self.note()

    def append(self, data: bytes | memoryview) -> None:
        """Behind what is written from the beginning on."""
        self.write_at(self.done[0][1] if self.done and self.done[0][0] == 0 else 0, data)

    def note(self) -> None:
        """Bring what is written to the disk, and then note that it is there."""
        with self._noting, translated(self._rooted.root):
            with self._guard:
                done, self._unnoted_bytes, self._noted_at = self.done, 0, time.monotonic()
            os.fdatasync(self._open_descriptor())
            state = {"size_bytes": self.size_bytes, "done": done}
            self._rooted.write((PARTIAL_FOLDER, f"{self._stem}.json"), json.dumps(state).encode())

    def restart(self) -> None:
        """Nothing of what is written counts."""
        with self._noting, translated(self._rooted.root):
            # The note goes first: a kill in between leaves data without a note, which counts for nothing.
            with suppress(FileNotFoundError):
                self._rooted.unlink((PARTIAL_FOLDER, f"{self._stem}.json"))
            with self._guard:
                os.ftruncate(self._open_descriptor(), 0)
                self.done, self._unnoted_bytes = (), 0

    def finish(self, progress: Progress | None = None) -> str:
        """Make it a blob; gives its digest. Raises ModelError when bytes are missing or the sum is wrong.

        The file is read again from the disk, not from memory, as far as the kernel obliges: a card that does not
        keep what it was given shows here, and not in what a model says.
        """
        if self.present:
            return self._digest or ""
        if self.size_bytes is None:
            self.size_bytes = self.done[-1][1] if self.done else 0
        if self.missing:
            size = format_bytes(self.size_bytes)
            raise ModelError(f"only {format_bytes(self.bytes_done)} of {size} came; pull it again to go on there")
        self.note()
        with translated(self._rooted.root):
            descriptor = self._open_descriptor()
            os.ftruncate(descriptor, self.size_bytes)
            os.fsync(descriptor)
            digest = hash_descriptor(descriptor, progress)
            if self._digest not in (None, digest):
                self.discard()
                raise ModelError(f"its SHA-256 is {digest} and should be {self._digest}; pull it again")
            self._place(digest)
        return digest

    def discard(self) -> None:
        """Nothing of it is kept."""
        for name in (f"{self._stem}.json", f"{self._stem}.data", f"{TEMPORARY}{self._stem}.json"):
            with suppress(FileNotFoundError):
                self._rooted.unlink((PARTIAL_FOLDER, name))
        self.close(note=False)

    def close(self, *, note: bool = True) -> None:
        """What is written stays, for the next one to go on with."""
        if self._descriptor < 0:
            return
        try:
            if note and self.done:
                self.note()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open_descriptor(self) -> int:
        if self._descriptor < 0:
            raise ValueError("the partial file is closed")
        return self._descriptor

    def _place(self, digest: str) -> None:
        """The last step: from here on it has its final name."""
        descriptor = self._open_descriptor()
        with suppress(OSError):  # some file systems have no permissions
            os.fchmod(descriptor, 0o444)
        self._keep(digest, os.fstat(descriptor))
        self._rooted.rename((PARTIAL_FOLDER, f"{self._stem}.data"), blob_parts(digest))
        with suppress(FileNotFoundError):
            self._rooted.unlink((PARTIAL_FOLDER, f"{self._stem}.json"))
        self.close(note=False)

    def _take_up(self) -> None:
        """What another one left, as far as its note and its file agree."""
        size, done = state_of(self._rooted, self._stem)
        there = os.fstat(self._descriptor).st_size
        if self.size_bytes is not None and size not in (None, self.size_bytes):
            done = ()
        most = there if self.size_bytes is None else min(there, self.size_bytes)
        self.done = tuple((start, min(end, most)) for start, end in done if start < most)
        self.size_bytes = size if self.size_bytes is None else self.size_bytes


def state_of(rooted: SafeDir, stem: str) -> tuple[int | None, tuple[Range, ...]]:
    """Size and ranges as they were noted; nothing where the note is not what we write."""
    try:
        state = json.loads(rooted.read((PARTIAL_FOLDER, f"{stem}.json"), _MOST_STATE_BYTES))
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
    """Sorted, without overlaps and without empty ones."""
    start, end = new
    if start >= end:
        return tuple(ranges)
    apart = []
    for one in ranges:
        if one[1] < start or one[0] > end:
            apart.append(one)
        else:
            start, end = min(start, one[0]), max(end, one[1])
    return tuple(sorted([*apart, (start, end)]))


def hash_descriptor(descriptor: int, progress: Progress | None) -> str:
    """SHA-256 of a whole file, read from the disk where the kernel lets go of what it has in memory."""
    size, at = os.fstat(descriptor).st_size, 0
    digest = hashlib.sha256()
    with suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    while piece := os.pread(descriptor, _PIECE_BYTES, at):
        digest.update(piece)
        at += len(piece)
        if progress is not None:
            progress(at, size)
    if at != size:
        raise OSError(errno.EIO, "changed while it was read")
    return digest.hexdigest()

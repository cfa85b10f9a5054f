"""Staging folders: a file that takes long to make is made beside its target, and renamed when it is complete.

A staging folder is locked by the process that makes it and by the tools that this process starts. One without a lock is
therefore left over from a killed process: the next process that stages a file there removes it, and so does
`trilithon prune`."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trilithon.files import sync, try_lock

__all__ = ["StagingDir", "clear_abandoned", "publish", "staging_dir"]

_PREFIX = ".trilithon-"
_NAME = re.compile(r"\.trilithon-[a-z0-9_]{8}")  # with what mkdtemp adds
_LONGEST_PATH_BYTES = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class StagingDir:
    """`lock` is a descriptor that tools inherit, so that the folder counts as used until they have ended too."""

    folder: Path
    lock: int


@contextmanager
def staging_dir(target: Path, notes: Path | None = None) -> Iterator[StagingDir]:
    """A folder beside `target`, removed at the end. A note of its path is kept in the folder `notes` meanwhile, for
    `clear_abandoned`. Raises OSError."""
    beside = target.absolute().parent
    for abandoned in _entries(beside):
        _remove_unlocked(abandoned)
    staging = _make_folder(beside)
    note = None if notes is None or notes == beside else notes / staging.folder.name
    try:
        if note is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_bytes(os.fsencode(staging.folder))
        yield staging
    finally:
        shutil.rmtree(staging.folder, ignore_errors=True)
        os.close(staging.lock)
        if note is not None:
            note.unlink(missing_ok=True)


def publish(made: Path, target: Path) -> None:
    """Flush the file to the disk and give it its final name. Raises OSError, and FileExistsError if the name was taken
    meanwhile: an existing file is not replaced."""
    sync(made)
    try:
        os.link(made, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as that of most SD cards
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        made.replace(target)
    sync(target.absolute().parent)


def clear_abandoned(notes: Path, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove the staging folders without a lock that are noted in the folder `notes`, or lie in it. Returns their
    number and their size in bytes."""
    count = freed = 0
    for entry in _entries(notes):
        is_note = entry.is_file() and not entry.is_symlink()
        folder = _read_note(entry) if is_note else entry
        size = _size_bytes(folder)
        if folder.name == entry.name and _remove_unlocked(folder, dry_run=dry_run):
            count, freed = count + 1, freed + size
        if is_note and not dry_run and (folder.name != entry.name or not os.path.lexists(folder)):
            entry.unlink(missing_ok=True)
    return count, freed


def _read_note(note: Path) -> Path:
    """The folder that a note names. A power cut may have damaged the note."""
    with note.open("rb") as file:
        return Path(os.fsdecode(file.read(_LONGEST_PATH_BYTES).replace(b"\0", b"")))


def _make_folder(beside: Path) -> StagingDir:
    while True:
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=_PREFIX))
        try:
            descriptor = os.open(folder, _FOLDER)
        except FileNotFoundError:  # another process removed it before it was locked
            continue
        try:
            mine = try_lock(descriptor) and folder.exists()  # else another process removes it
        except OSError:  # a file system without locks, where no process removes folders
            mine = True
        if mine:
            return StagingDir(folder, descriptor)
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    """The staging folders in a folder, and notes of them; empty when it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    return []


def _remove_unlocked(folder: Path, *, dry_run: bool = False) -> bool:
    """Remove a staging folder of this user that no process has locked. Returns whether it did, or would."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:  # removed meanwhile, a link, or another user's
        return False
    try:
        if os.fstat(descriptor).st_uid != os.geteuid() or not try_lock(descriptor):
            return False
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True)
        return dry_run or not folder.exists()
    except OSError:  # a file system without locks: whether it is in use is unknown
        return False
    finally:
        os.close(descriptor)


def _size_bytes(folder: Path) -> int:
    """Bytes on the disk. Files that vanish or cannot be read are not counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total

"""Work folders: what takes long to make is made beside where it is to lie, and gets its name when it is whole.

A work folder is locked by its maker and by the tools that the maker starts. So what a killed one left behind can be
told from what somebody works in: the next who makes something there clears it away, and so does `trilithon prune`.
"""

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
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class StagingDir:
    """`lock` is a descriptor for the tools that work in the folder: it counts as used until they have ended too."""

    folder: Path
    lock: int


@contextmanager
def staging_dir(target: Path, ledger: Path | None = None) -> Iterator[StagingDir]:
    """A folder on the disk that `target` is to lie on, gone at the end. Where it is gets noted in the folder `ledger`,
    for `clear_abandoned`. Raises OSError."""
    beside = target.absolute().parent
    for left in _in(beside):
        _clear(left)
    made = _made(beside)
    note = None if ledger is None or ledger == beside else ledger / made.folder.name
    try:
        if note is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_bytes(os.fsencode(made.folder))
        yield made
    finally:
        shutil.rmtree(made.folder, ignore_errors=True)
        os.close(made.lock)
        if note is not None:
            note.unlink(missing_ok=True)


def publish(made: Path, target: Path) -> None:
    """Give the file its name, when it is on the disk. Raises OSError; FileExistsError for a name that was taken
    meanwhile, for what is there stays."""
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


def clear_abandoned(ledger: Path, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove the work folders noted in `ledger`, and those in it, whose makers are dead. Gives how many, and their
    bytes."""
    count = freed = 0
    for entry in _in(ledger):
        is_note = entry.is_file() and not entry.is_symlink()
        folder = _noted(entry) if is_note else entry
        size = _size_bytes(folder)
        if folder.name == entry.name and _clear(folder, dry_run=dry_run):
            count, freed = count + 1, freed + size
        if is_note and not dry_run and (folder.name != entry.name or not os.path.lexists(folder)):
            entry.unlink(missing_ok=True)
    return count, freed


def _noted(note: Path) -> Path:
    """The folder that the note says, of whatever a power cut left of it."""
    with note.open("rb") as file:
        return Path(os.fsdecode(file.read(_LONGEST_PATH_BYTES).replace(b"\0", b"")))


def _made(beside: Path) -> StagingDir:
    while True:
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=_PREFIX))
        try:
            descriptor = os.open(folder, _FOLDER)
        except FileNotFoundError:  # somebody cleared it away before it was locked
            continue
        try:
            mine = try_lock(descriptor) and folder.exists()  # else somebody clears it away
        except OSError:  # a file system without locks: nobody else can have it either, and so nobody clears it
            mine = True
        if mine:
            return StagingDir(folder, descriptor)
        os.close(descriptor)


def _in(folder: Path) -> list[Path]:
    """The work folders in it, and notes of them; empty where it cannot be read, for then nothing can be made there."""
    with suppress(OSError), os.scandir(folder) as found:
        return sorted(Path(entry.path) for entry in found if _NAME.fullmatch(entry.name))
    return []


def _clear(folder: Path, *, dry_run: bool = False) -> bool:
    """Remove the folder where it is one of ours that nobody holds."""
    if not _NAME.fullmatch(folder.name):
        return False
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:  # gone, or a link, or another user's
        return False
    try:
        if os.fstat(descriptor).st_uid != os.geteuid() or not try_lock(descriptor):
            return False
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True)
        return dry_run or not folder.exists()
    except OSError:  # a file system without locks: nobody can tell whether its maker lives
        return False
    finally:
        os.close(descriptor)


def _size_bytes(folder: Path) -> int:
    """On the disk. What vanishes meanwhile, or cannot be read, counts for nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total

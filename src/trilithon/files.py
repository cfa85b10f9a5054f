"""Files that several processes share: locks that end with their process, files replaced in one step, JSON stores."""

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from trilithon.errors import UserError

__all__ = [
    "TEMPORARY",
    "JsonStore",
    "file_lock",
    "read_text",
    "replace_at",
    "replace_file",
    "save_text",
    "sync",
    "try_lock",
]

TEMPORARY = ".new-"
"""Before the name of a file that is being written."""

_MOST_BYTES = 1 << 20

T = TypeVar("T")


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder until its last descriptor is closed, at the latest when the process ends. False when
    another process holds the lock. Raises OSError where the file system has no locks."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which is made with its folder where it is missing. Raises OSError; without
    `wait` BlockingIOError when another process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_RDWR | flags, 0o644)
    except PermissionError:  # made by another user, for example by root
        descriptor = os.open(path, os.O_RDONLY | flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_at(folder: int, name: str, content: bytes, *, temporary: str, mode: int | None = None) -> None:
    """Replace the file `name` in an open folder: readers see the old content or the new one, also after a power cut.

    `temporary` is the name that it is written under; what another writer left there is removed. `mode` None leaves the
    permissions to the umask. Raises OSError, and leaves the old file alone then."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644 if mode is None else mode, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)  # the new name has to be on the disk too


def replace_file(path: Path, content: str | bytes, *, mode: int | None = 0o600) -> None:
    """Replace the file as `replace_at` does, with exactly these permissions. Several processes may do so at once.
    Raises OSError."""
    octets = content.encode() if isinstance(content, str) else content
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temporary = f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        replace_at(folder, path.name, octets, temporary=temporary, mode=mode)
    finally:
        os.close(folder)


def save_text(path: Path, text: str, *, mode: int = 0o600, error: type[UserError] = UserError) -> None:
    """`replace_file`, with its folder made where it is missing. Raises `error`, which names the fix."""
    with _translated(path.parent, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text, mode=mode)


def read_text(path: Path, *, most_bytes: int = _MOST_BYTES, closed_to: int = 0) -> str:
    """Read a small file of UTF-8 text. The descriptor that is checked is the one that is read.

    Raises OSError, ValueError for a file that is too long or not UTF-8, and UserError for a plain file that has one of
    the permission bits `closed_to`."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & closed_to:
            raise UserError("{path} is open to other users of this machine; run: chmod 600 {path}", path=path)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"longer than {most_bytes} bytes")
    return data.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonStore(Generic[T]):
    """One small JSON file that several processes read and replace.

    `parse` makes a value of what the file holds; it raises ValueError, TypeError, KeyError or AttributeError where
    something is missing or of the wrong type. Then the file is damaged, and the error ends with `fix`. `error` is the
    class of errors that every method raises, `mode` the permissions of a new file, `closed_to` the permission bits with
    which the file is refused."""

    path: Path
    parse: Callable[[Any], T]
    fix: str
    error: type[UserError] = UserError
    mode: int = 0o600
    closed_to: int = 0

    def read(self) -> T | None:
        """None where there is no file."""
        try:
            return self.parse(json.loads(read_text(self.path, closed_to=self.closed_to)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            message = f"{self.path} cannot be read: {error.strerror}; check its permissions (ls -l)"
            raise self.error(message) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self.error(f"{self.path} is damaged ({error}); {self.fix}") from error

    def write(self, content: object) -> None:
        """Replace the file by this content, which has to be JSON's."""
        save_text(self.path, json.dumps(content, indent=1) + "\n", mode=self.mode, error=self.error)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Reading the file and writing it as one step: other processes wait meanwhile."""
        with _translated(self.path.parent, self.error), file_lock(self.path.with_suffix(".lock")):
            yield


@contextlib.contextmanager
def _translated(folder: Path, kind: type[UserError]) -> Iterator[None]:
    """Turn an OSError into an error for the user."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"{folder} cannot be written: {error.strerror}; free some space there, check its permissions, or name "
            "another folder with TRILITHON_DATA"
        ) from error

"""Files below one folder, opened by descriptors from the root down, so that no symbolic link is followed.

The root itself may be a link, because people move their models to a larger disk that way."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trilithon.errors import ModelError, NoRoom
from trilithon.files import TEMPORARY, replace_at

__all__ = ["LinkInStore", "Parts", "SafeDir", "read_at", "translated"]

Parts = Sequence[str]
"""A path relative to the root: the names of the folders, and of the file at the end."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_NOFOLLOW

_LINK = "is a symbolic link, and the store follows none"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LinkInStore(FileNotFoundError):
    """A symbolic link in the place of a folder or a file. Reading treats it as missing; deleting stops, because blobs
    behind the link may be in use."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError into ModelError, or into NoRoom when the disk is full. `path` is named in the message."""
    try:
        yield
    except OSError as error:
        raise (NoRoom if error.errno in _FULL else ModelError)(_message(path, error)) from error


class SafeDir:
    """Every method raises OSError, and FileNotFoundError for a path that leads through a symbolic link."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, parts: Parts) -> Path:
        return self.root.joinpath(*parts)

    def names(self, parts: Parts) -> list[str]:
        """The entries of a folder, sorted; empty when it does not exist."""
        try:
            with self.folder(parts) as folder:
                return sorted(os.listdir(folder))  # noqa: PTH208 - by descriptor
        except FileNotFoundError:
            return []

    def sizes(self, parts: Parts) -> dict[str, os.stat_result]:
        """The status of every plain file in a folder, by name."""
        statuses = {}
        for name in self.names(parts):
            with suppress(FileNotFoundError):
                statuses[name] = self.status((*parts, name))
        return statuses

    def status(self, parts: Parts) -> os.stat_result:
        """The status of a plain file. Raises FileNotFoundError for anything else."""
        with self.folder(parts[:-1]) as folder:
            status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path(parts)))
        return status

    def open(self, parts: Parts, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a plain file, for the caller to close. O_CREAT also makes its folders."""
        with self.folder(parts[:-1], create=bool(flags & os.O_CREAT)) as folder:
            return _open_plain(parts[-1], flags, folder)

    def read(self, parts: Parts, most_bytes: int) -> bytes:
        with self.folder(parts[:-1]) as folder:
            return read_at(folder, parts[-1], most_bytes)

    def walk(
        self, parts: Parts, depth: int, on_error: Callable[[Path, OSError], None]
    ) -> Iterator[tuple[tuple[str, ...], int]]:
        """Every entry that is `depth` folders below: its relative path, and a descriptor of its folder, which is
        closed when the walk goes on. `on_error` is called for folders that cannot be read and for links."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.folder(parts))
            except OSError as error:
                if isinstance(error, LinkInStore) or not isinstance(error, FileNotFoundError):
                    on_error(self.path(parts), error)
                return
            yield from _walk(folder, (), depth, lambda relative, error: on_error(self.path((*parts, *relative)), error))

    def write(self, parts: Parts, content: bytes) -> None:
        """Replace a file in one step, also if the power fails. The caller holds the lock for this name."""
        with self.folder(parts[:-1], create=True) as folder:
            replace_at(folder, parts[-1], content, temporary=TEMPORARY + parts[-1])

    def rename(self, parts: Parts, to: Parts) -> None:
        """Rename, replacing an existing file; on the disk when it returns. The writer has synced the content."""
        with self.folder(parts[:-1]) as source, self.folder(to[:-1], create=True) as target:
            os.rename(parts[-1], to[-1], src_dir_fd=source, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(source)

    def target(self, parts: Parts) -> str | None:
        """The target of a symbolic link; None where there is no link."""
        try:
            with self.folder(parts[:-1]) as folder:
                return os.readlink(parts[-1], dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # EINVAL: not a link
                return None
            raise

    def link(self, parts: Parts, target: Path) -> None:
        """Make a symbolic link, replacing an existing entry. The caller holds the lock for this name."""
        temporary = TEMPORARY + parts[-1]
        with self.folder(parts[:-1], create=True) as folder:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            os.symlink(target, temporary, dir_fd=folder)
            os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, parts: Parts) -> None:
        """Remove the entry, a link itself and not its target; on the disk when it returns."""
        with self.folder(parts[:-1]) as folder:
            os.unlink(parts[-1], dir_fd=folder)
            os.fsync(folder)

    def remove_entries(self, parts: Parts) -> None:
        """Remove every file and link in a folder, but not its subfolders."""
        for name in self.names(parts):
            with suppress(FileNotFoundError, IsADirectoryError):
                self.unlink((*parts, name))

    def remove_empty(self, parts: Parts) -> None:
        """Remove the folder and its parents as long as they are empty, except for the first of `parts`."""
        for depth in range(len(parts), 1, -1):
            try:
                with self.folder(parts[: depth - 1]) as folder:
                    os.rmdir(parts[depth - 1], dir_fd=folder)
            except OSError:  # not empty, or gone already
                return

    def remove_temporary(self, parts: Parts) -> None:
        """Remove what killed writers left in a folder that no process writes to now."""
        for name in self.names(parts):
            if name.startswith(TEMPORARY):
                with suppress(FileNotFoundError, IsADirectoryError):
                    self.unlink((*parts, name))

    @contextmanager
    def folder(self, parts: Parts, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder, for the `dir_fd` argument of functions in `os`."""
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts:
                if create:
                    _make_folder(part, descriptor)
                child = _no_link(part, _FOLDER, descriptor)
                os.close(descriptor)
                descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)


def read_at(folder: int, name: str, most_bytes: int) -> bytes:
    """Read a plain file of an open folder. Raises FileNotFoundError for anything else, OSError for one too large."""
    descriptor = _open_plain(name, os.O_RDONLY, folder)
    try:
        size = os.fstat(descriptor).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        content = b""
        while piece := os.read(descriptor, size - len(content) + 1):
            content += piece
            if len(content) > size:  # it grows: not one of the store's files, which are always replaced
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        return content
    finally:
        os.close(descriptor)


def _walk(
    folder: int, relative: tuple[str, ...], depth: int, on_error: Callable[[Parts, OSError], None]
) -> Iterator[tuple[tuple[str, ...], int]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        on_error(relative, error)
        return
    for name in names:
        if depth == 0:
            yield (*relative, name), folder
            continue
        try:
            child = _no_link(name, _FOLDER, folder)
        except OSError as error:
            # Another FileNotFoundError: not a folder, or removed meanwhile.
            if isinstance(error, LinkInStore) or not isinstance(error, FileNotFoundError):
                on_error((*relative, name), error)
            continue
        try:
            yield from _walk(child, (*relative, name), depth - 1, on_error)
        finally:
            os.close(child)


def _open_plain(name: str, flags: int, folder: int) -> int:
    descriptor = _no_link(name, flags | _FILE | os.O_NONBLOCK, folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe or a device
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return descriptor


def _make_folder(name: str, parent: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)


def _no_link(name: str, flags: int, parent: int) -> int:
    """Open an entry that is not a link. (With O_DIRECTORY the kernel reports a link as "not a directory".)"""
    if name in ("", ".", "..") or "/" in name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    try:
        return os.open(name, flags, 0o644, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise
        is_link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        if is_link and flags & os.O_CREAT:
            raise OSError(errno.ELOOP, _LINK, name) from error
        if is_link:
            raise LinkInStore(errno.ELOOP, _LINK, name) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error


def _message(path: Path, error: OSError) -> str:
    where = path if not isinstance(error.filename, str) else error.filename
    match error.errno:
        case number if number in _FULL:
            return f"no space left in {path}; free some there, or set TRILITHON_DATA to another folder"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"{path} cannot be written ({error.strerror}); fix that, or set TRILITHON_DATA to another folder"
        case errno.EFBIG:
            return f"{path} takes no file of that size (FAT32: 4 GiB); set TRILITHON_DATA to another folder"
        case errno.ENAMETOOLONG:
            return f"{str(where)[:80]}… is too long for this file system; choose a shorter name"
        case _:
            return f"{path}: {where}: {error.strerror or error}; fix that, or set TRILITHON_DATA to another folder"

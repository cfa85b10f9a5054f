"""A backup: a tar.gz file of settings and of the data folder, without models. Read as a stranger's file would be."""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trilithon.errors import UserError
from trilithon.files import TEMPORARY, sync

__all__ = ["FORMAT", "Backup", "extracted", "move_into_place", "write_backup"]

FORMAT = 1
DATA, CONFIG, CONTENTS = "data", "config.toml", "backup.json"
_MODELS = "models"
_ADOPTED = PurePosixPath(_MODELS, "adopted.json")  # folders that the user named, and no model
_NOT_KEPT = (".lock", ".sock", "-wal", "-shm", "-journal")
_SQLITE = ".sqlite"
_MOST_FILES = 100_000
_MOST_BYTES = 64 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """`digests` are SHA-256 by the names of the members, `models` names that the store had."""

    created: str
    version: str
    models: tuple[str, ...]
    digests: Mapping[str, str]


def write_backup(
    target: Path, data: Path, config: Path, *, created: str, version: str, models: Sequence[str]
) -> tuple[int, tuple[str, ...]]:
    """How many files were written, and the names of those that were left out, with the reason. For its owner alone
    (mode 600): it has hashes of keys and the conversations.

    Raises UserError when `target` exists or cannot be written."""
    digests: dict[str, str] = {}
    left_out: list[str] = []
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UserError("{target} exists; choose another file", target=target) from None
    except OSError as error:
        raise UserError(
            "{target} cannot be written: {reason}; choose another folder", target=target, reason=error.strerror
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            if config.is_file():
                digests[CONFIG] = _add(archive, CONFIG, config)
            for path in _files(data, os.fstat(file.fileno()), left_out):
                name = f"{DATA}/{path.relative_to(data).as_posix()}"
                try:
                    digests[name] = _add(archive, name, path)
                except (PermissionError, FileNotFoundError) as error:  # removed meanwhile, or another user's
                    left_out.append(f"{path}: {error.strerror}")
            contents = {"format": FORMAT, "created": created, "version": version, "models": list(models)}
            text = json.dumps(contents | {"files": digests}, indent=1).encode()
            _add_bytes(archive, CONTENTS, io.BytesIO(text), len(text), 0o600)
        sync(target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                "{target} cannot be written: {reason}; free some space there", target=target, reason=error.strerror
            ) from error
        raise
    return len(digests), tuple(left_out)


def _files(data: Path, target: os.stat_result, left_out: list[str]) -> Iterator[Path]:
    """Without the backup itself, which may be written there. A link to a file beside it, as libraries have, counts as
    that file."""

    def note_unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else removed meanwhile
            left_out.append(f"{error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(data, onerror=note_unread):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if here != data or name != _MODELS)
        for name in sorted([*names, *(name for name in folders if (here / name).is_symlink())]):
            path = here / name
            if name.endswith(_NOT_KEPT) or name.startswith(TEMPORARY):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # removed meanwhile
                continue
            is_linked = stat.S_ISLNK(status.st_mode) and path.is_file() and path.resolve().parent == here.resolve()
            if stat.S_ISREG(status.st_mode) or is_linked:
                if not os.path.samestat(status, target):
                    yield path
            else:
                left_out.append(f"{path}: not a plain file")
    if (data / _ADOPTED).is_file():
        yield data / _ADOPTED


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    """The SHA-256. A database is copied as SQLite does it, so that a server may go on writing."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if path.suffix != _SQLITE:
        with path.open("rb") as file:
            return _add_bytes(archive, name, file, os.fstat(file.fileno()).st_size, mode)
    with tempfile.TemporaryDirectory(prefix="trilithon-backup-") as folder:
        copy = Path(folder, path.name)
        try:
            with (
                contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            raise UserError(
                "{path} cannot be read: {reason}; move it away, and back up again", path=path, reason=error
            ) from error
        with copy.open("rb") as file:
            return _add_bytes(archive, name, file, os.fstat(file.fileno()).st_size, mode)


def _add_bytes(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int, mode: int) -> str:
    """The SHA-256 of `size` bytes. A file that grows meanwhile is cut there, one that shrinks has zeros at its end."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    reader = _HashingReader(file, size)
    archive.addfile(entry, reader)
    return reader.digest.hexdigest()


class _HashingReader(io.RawIOBase):
    def __init__(self, file: IO[bytes], size: int):
        self.digest = hashlib.sha256()
        self._file = file
        self._left = size

    def read(self, count: int = -1) -> bytes:
        wanted = self._left if count < 0 else min(count, self._left)
        content = self._file.read(wanted).ljust(wanted, b"\0")
        self._left -= wanted
        self.digest.update(content)
        return content


@contextlib.contextmanager
def extracted(source: Path, beside: Path) -> Iterator[tuple[Backup, Path]]:
    """The files of a backup in a new folder in `beside`, checked against their SHA-256; it goes at the end.

    Raises UserError for what is no backup, is damaged, or was made by a newer Trilithon."""
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}restore-", dir=beside) as name:
            folder = Path(name)
            digests = _extract(source, folder)
            yield _read_contents(source, folder, digests), folder
    except OSError as error:
        place = error.filename or source
        raise UserError(
            "{place}: {reason}; check the path, its permissions and the disk",
            place=place,
            reason=error.strerror or error,
        ) from error


def _extract(source: Path, folder: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    taken = 0
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            for member in archive:
                _require_safe(source, member)
                taken += member.size
                if len(digests) >= _MOST_FILES or taken > _MOST_BYTES:
                    raise UserError("{source} is too large for a backup of Trilithon", source=source)
                content = archive.extractfile(member)
                assert content is not None  # it is a plain file
                digests[member.name] = _write(folder / member.name, content, member.mode)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            "{source} is not a backup of Trilithon, or is damaged: {reason}", source=source, reason=error
        ) from error
    return digests


def _require_safe(source: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    inside = member.name in (CONFIG, CONTENTS) or (len(path.parts) > 1 and path.parts[0] == DATA)
    if not member.isreg() or not inside or ".." in path.parts or str(path) != member.name or "\0" in member.name:
        raise UserError("{source} is not a backup of Trilithon: it has {name!r}", source=source, name=member.name[:100])


def _write(path: Path, content: IO[bytes], mode: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        os.fchmod(file.fileno(), mode & 0o777)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _read_contents(source: Path, folder: Path, digests: Mapping[str, str]) -> Backup:
    try:
        contents: dict[str, Any] = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        if contents["format"] > FORMAT:
            raise UserError(
                "{source} was made by Trilithon {version}; restore it with that version",
                source=source,
                version=contents["version"],
            )
        backup = Backup(
            created=str(contents["created"]),
            version=str(contents["version"]),
            models=tuple(map(str, contents["models"])),
            digests=dict(contents["files"]),
        )
    except FileNotFoundError:
        raise UserError("{source} is not a whole backup: its list of files is missing", source=source) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            "{source} is damaged: its list of files cannot be read ({reason})", source=source, reason=error
        ) from error
    if backup.digests != {name: digest for name, digest in digests.items() if name != CONTENTS}:
        raise UserError("{source} is damaged: its files differ from its list", source=source)
    return backup


def move_into_place(backup: Backup, folder: Path, data: Path, config: Path, kept: Path) -> tuple[str, ...]:
    """Move the extracted files to where they belong. What was there, and differs, goes to `kept`; which files.

    Raises OSError."""
    replaced = []
    for name in sorted(backup.digests):
        target = config.resolve() if name == CONFIG else data / PurePosixPath(name).relative_to(DATA)
        logs = [target.with_name(target.name + ending) for ending in _NOT_KEPT[2:]]  # of a database, beside it
        has_log = target.suffix == _SQLITE and any(map(os.path.lexists, logs))
        if target.is_file() and not has_log and _digest(target) == backup.digests[name]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in (target, *logs):
            if os.path.lexists(old):
                place = kept / PurePosixPath(name).with_name(PurePosixPath(name).name + old.name[len(target.name) :])
                place.parent.mkdir(parents=True, exist_ok=True)
                _move(old, place)
                replaced.append(str(old))
        _move(folder / name, target)
    return tuple(replaced)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(source: Path, target: Path) -> None:
    """Also to another file system, where the settings may be."""
    import shutil

    shutil.move(source, target)

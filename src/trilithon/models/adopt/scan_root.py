"""Reads the folders of other programs without changing them.

No file is opened for writing, and nothing outside the folder of a source is read: a link that leaves it is skipped and
reported."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from trilithon.models.files.gguf_header import describe_content
from trilithon.models.store.manifest import FileFormat, Manifest, Role, StoredFile, safe_file_name

__all__ = ["SOURCES", "AdoptedModel", "ScanResult", "ScanRoot", "Skipped", "Source", "created", "stored"]

Source = Literal["Ollama", "Hugging Face", "LM Studio", "RKLLAMA", "folder"]
SOURCES: tuple[Source, ...] = get_args(Source)

_SMALL_BYTES = 1 << 20  # smaller files are checked for being a Git LFS pointer or a web page
_LATEST_SECONDS = 253_402_300_799.0  # the end of the year 9999; file systems allow later times


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedModel:
    """A model of another program. `place` is its file or folder, for people; the files of `manifest` have paths."""

    manifest: Manifest
    source: Source
    place: Path


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is not used. `reason` is one line, which ends with the fix if there is one."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A plain file in the folder of a source; `real` is its path without links, `changed_seconds` since 1970."""

    path: Path
    real: str
    size_bytes: int
    changed_seconds: float


class ScanRoot:
    """The folder of one source. What cannot be read is in `skipped`, and is no error. Links may lead to files within
    `within`, by default the folder itself."""

    def __init__(self, root: Path, source: Source, within: Path | None = None):
        self.root, self.source = root, source
        self.real = os.path.realpath(within or root)
        self.skipped: list[Skipped] = []
        self._folders: dict[Path, str | None] = {}

    def skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(path, reason))

    def folders(self, folder: Path) -> Iterator[Path]:
        """The subfolders by name, without hidden ones and links."""
        for entry in self.entries(folder):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield self.subfolder(entry)

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """The entries of a folder by name; empty when it does not exist or cannot be read."""
        if self._real_folder(folder) is None:
            return []
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.skip(folder, f"cannot be read: {error.strerror}; check its permissions (ls -ld)")
            return []

    def subfolder(self, entry: os.DirEntry[str]) -> Path:
        """The path of an entry that is a folder and not a link: its real path follows from that of its parent."""
        path = Path(entry.path)
        if parent := self._folders.get(path.parent):
            self._folders[path] = f"{parent}/{entry.name}"
        return path

    def file(self, path: Path) -> ScanResult | None:
        """The plain file at a path in the folder; None for anything else, which is skipped."""
        parent = self._real_folder(path.parent)
        if parent is None:
            return None
        try:
            status, real = path.lstat(), f"{parent}/{path.name}"
            if stat.S_ISLNK(status.st_mode):
                real = os.path.realpath(path)
                if not self.contains(real):
                    self.skip(path, f"is a link that leaves {self.root}; trilithon adopt '{Path(real).parent}'")
                    return None
                status = os.stat(real)  # noqa: PTH116 - a text
        except FileNotFoundError:
            self.skip(path, "is a link to a missing file; fetch the file again" if path.is_symlink() else "is missing")
            return None
        except OSError as error:
            self.skip(path, f"cannot be read: {error.strerror}; check its permissions (ls -l)")
            return None
        if not stat.S_ISREG(status.st_mode):
            self.skip(path, "is not a plain file")
            return None
        return ScanResult(path, real, status.st_size, status.st_mtime)

    def _real_folder(self, folder: Path) -> str | None:
        """The path of a folder without links; None for one that is outside, which is skipped."""
        if folder not in self._folders:
            real = os.path.realpath(folder)
            self._folders[folder] = real if self.contains(real) else None
            if not self.contains(real):
                self.skip(folder, f"is a link that leaves {self.root}; trilithon adopt '{real}'")
        return self._folders[folder]

    def contains(self, real: str) -> bool:
        """Whether a path without links is in the folder."""
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")

    def read(self, file: ScanResult, most_bytes: int) -> bytes | None:
        """The first `most_bytes` of a file; None for one that cannot be read, which is skipped."""
        try:
            descriptor = os.open(file.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(descriptor, most_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.skip(file.path, f"cannot be read: {error.strerror}; check its permissions (ls -l)")
            return None

    def is_model(self, file: ScanResult) -> bool:
        """Whether a file may be weights; one that is clearly something else is skipped. Large files are not opened."""
        if file.size_bytes == 0:
            self.skip(file.path, "is empty; download it again")
            return False
        if file.size_bytes >= _SMALL_BYTES:
            return True
        beginning = self.read(file, 512)
        if beginning is None:
            return False
        is_gguf = file.path.suffix.lower() == ".gguf"
        description = "" if beginning[:4] == b"GGUF" else describe_content(beginning)
        if description and (is_gguf or not description.startswith("is not a GGUF")):
            self.skip(file.path, description)
            return False
        return True


def stored(
    file: ScanResult,
    role: Role,
    form: FileFormat,
    *,
    name: str = "",
    digest: str = "",
    quantization: str = "",
    chip: str = "",
) -> StoredFile:
    """A file of another program as a file of a model. `name` replaces its own name."""
    return StoredFile(
        role=role,
        digest=digest,
        size_bytes=file.size_bytes,
        name=safe_file_name(name or file.path.name),
        format=form,
        quantization=quantization,
        target_platform=chip,
        path=file.path.absolute(),
    )


def created(file: ScanResult) -> str:
    """The modification time of a file in RFC 3339."""
    seconds = min(max(file.changed_seconds, 0.0), _LATEST_SECONDS)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

"""Models that other programs keep on this disk: what is found of them, and how their folders are read.

They are used where they lie and never changed or removed, so that nothing here opens a file for writing. Nothing
outside a source's own folder is read either: a link that leaves it is passed over, and said.
"""

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

_SMALL_BYTES = 1 << 20  # below, a look at the beginning tells a pointer or a web page from a model
_LATEST_SECONDS = 253_402_300_799.0  # the end of the year 9999: file systems can say more


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedModel:
    """`place` is the file or folder that people would look for; the files of `manifest` say where each lies."""

    manifest: Manifest
    source: Source
    place: Path


@dataclass(frozen=True, slots=True)
class Skipped:
    """What looked like a model and is not used. `reason` is one line that ends with the fix where there is one."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A plain file in a source's folder; `real` is where it lies after links."""

    path: Path
    real: str
    size_bytes: int
    changed_seconds: float


class ScanRoot:
    """One folder of one source. What cannot be read of it is kept in `skipped`, and is no error. Links lead no
    further than `within`, by default the folder itself."""

    def __init__(self, root: Path, source: Source, within: Path | None = None):
        self.root, self.source = root, source
        self.real = os.path.realpath(within or root)
        self.skipped: list[Skipped] = []
        self._folders: dict[Path, str | None] = {}

    def skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(path, reason))

    def folders(self, folder: Path) -> Iterator[Path]:
        """Those in it, by name; hidden ones and links to others are not entered."""
        for entry in self.entries(folder):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield self.entered(entry)

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in the folder, by name; empty where there is none, or it cannot be read."""
        if self._real_folder(folder) is None:
            return []
        try:
            with os.scandir(folder) as found:
                return sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.skip(folder, f"cannot be read: {error.strerror}; check its permissions (ls -ld)")
            return []

    def entered(self, entry: os.DirEntry[str]) -> Path:
        """A folder that is no link, whose real place is known by that of the one it was listed in."""
        path = Path(entry.path)
        if parent := self._folders.get(path.parent):
            self._folders[path] = f"{parent}/{entry.name}"
        return path

    def file(self, path: Path) -> ScanResult | None:
        """None for what is no plain file within the folder, which is passed over; for what is not there too."""
        parent = self._real_folder(path.parent)
        if parent is None:
            return None
        try:
            status, real = path.lstat(), f"{parent}/{path.name}"
            if stat.S_ISLNK(status.st_mode):
                real = os.path.realpath(path)
                if not self.holds(real):
                    self.skip(path, f"is a link that leaves {self.root}; trilithon adopt '{Path(real).parent}'")
                    return None
                status = os.stat(real)  # noqa: PTH116 - a text
        except FileNotFoundError:
            self.skip(path, "is a link to nothing; fetch the file again" if path.is_symlink() else "is not there")
            return None
        except OSError as error:
            self.skip(path, f"cannot be read: {error.strerror}; check its permissions (ls -l)")
            return None
        if not stat.S_ISREG(status.st_mode):
            self.skip(path, "is no plain file")
            return None
        return ScanResult(path, real, status.st_size, status.st_mtime)

    def _real_folder(self, folder: Path) -> str | None:
        """Where the folder is after links; None, and passed over, where that is elsewhere."""
        if folder not in self._folders:
            real = os.path.realpath(folder)
            self._folders[folder] = real if self.holds(real) else None
            if not self.holds(real):
                self.skip(folder, f"is a link that leaves {self.root}; trilithon adopt '{real}'")
        return self._folders[folder]

    def holds(self, real: str) -> bool:
        """Whether a path without links lies in the folder."""
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")

    def read(self, found: ScanResult, most_bytes: int) -> bytes | None:
        """Its content, or its beginning; None where it cannot be read, which is passed over."""
        try:
            descriptor = os.open(found.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(descriptor, most_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.skip(found.path, f"cannot be read: {error.strerror}; check its permissions (ls -l)")
            return None

    def is_model(self, found: ScanResult) -> bool:
        """Whether it may be weights; what surely is something else is passed over. A large file is not opened."""
        if found.size_bytes == 0:
            self.skip(found.path, "is empty; download it again")
            return False
        if found.size_bytes >= _SMALL_BYTES:
            return True
        head = self.read(found, 512)
        if head is None:
            return False
        is_gguf = found.path.suffix.lower() == ".gguf"
        instead = "" if head[:4] == b"GGUF" else describe_content(head)
        if instead and (is_gguf or not instead.startswith("is not a GGUF")):
            self.skip(found.path, instead)
            return False
        return True


def stored(
    found: ScanResult,
    role: Role,
    form: FileFormat,
    *,
    name: str = "",
    digest: str = "",
    quantization: str = "",
    chip: str = "",
) -> StoredFile:
    """A file of another program as a model's. `name` is what it is called where its own name says nothing."""
    return StoredFile(
        role=role,
        digest=digest,
        size_bytes=found.size_bytes,
        name=safe_file_name(name or found.path.name),
        format=form,
        quantization=quantization,
        target_platform=chip,
        path=found.path.absolute(),
    )


def created(found: ScanResult) -> str:
    """When the file was written, as a manifest says it."""
    seconds = min(max(found.changed_seconds, 0.0), _LATEST_SECONDS)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

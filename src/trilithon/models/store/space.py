"""Whether what is to come fits on the disk of a store, beside what other processes have promised to write there."""

import shutil
from collections.abc import Collection

from trilithon.errors import NoRoom
from trilithon.models.store.locks import try_lock
from trilithon.models.store.partial import PARTIAL_FOLDER, STEM, state_of
from trilithon.models.store.safe_dir import SafeDir
from trilithon.units import format_bytes

__all__ = ["lacking_bytes", "require_room"]

_RESERVE_BYTES = 64 << 20


def require_room(own: SafeDir, size_bytes: int, beside: Collection[str] = ()) -> None:
    """Raises NoRoom when so much more does not fit, with what others are still to write; the partial files named
    `beside` are counted in it. Raises OSError."""
    folder = next(each for each in (own.root, *own.root.parents) if each.exists())
    free = max(shutil.disk_usage(folder).free - _RESERVE_BYTES - _promised_bytes(own, beside), 0)
    if size_bytes > free:
        raise NoRoom(
            f"{format_bytes(size_bytes)} are needed in {own.root} and {format_bytes(free)} are free; "
            "remove a model (trilithon rm NAME), or set TRILITHON_DATA to a folder on a larger disk"
        )


def lacking_bytes(own: SafeDir, stem: str, size_bytes: int) -> int:
    """What a file still takes of the disk: what is written of it, noted or not, is written there again."""
    try:
        taken = own.status((PARTIAL_FOLDER, f"{stem}.data")).st_blocks * 512
    except FileNotFoundError:
        taken = 0
    return max(size_bytes - taken, 0)


def _promised_bytes(own: SafeDir, beside: Collection[str]) -> int:
    """What other processes have still to write of files whose size they know."""
    promised = 0
    for name in own.names((PARTIAL_FOLDER,)):
        stem, dot, suffix = name.rpartition(".")
        if not dot or suffix != "json" or stem in beside or not STEM.fullmatch(stem):
            continue
        held = try_lock(own, f"receive-{stem}")
        if held is not None:  # nobody goes on with it now
            held.release()
            continue
        promised += lacking_bytes(own, stem, state_of(own, stem)[0] or 0)
    return promised

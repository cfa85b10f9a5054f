"""Whether a file is in the page cache, and how to get it out: a cold start is only cold if it is."""

import asyncio
import ctypes
import errno
import mmap
import os
from pathlib import Path

import numpy as np

__all__ = ["bring_in", "evict", "resident_fraction"]

_PIECE_BYTES = 4 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


def evict(path: Path) -> float:
    """Ask the kernel to drop the file's pages (no root needed); returns the fraction that stayed.

    What is not yet on the disk is written first. Pages that another process has mapped stay. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _write_back(descriptor)  # a dirty page stays, and a model that has just been written is all dirty pages
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return resident_fraction(path)


def _write_back(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:  # a medium that is only ever read (squashfs, ISO 9660) knows no fsync
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise


async def bring_in(path: Path) -> float:
    """Read the file once; returns the fraction that is in memory then. Raises OSError.

    Between two pieces others have their turn: gigabytes from a memory card take minutes, and Ctrl-C shall not wait."""
    with path.open("rb", buffering=0) as file:
        while file.read(_PIECE_BYTES):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
    return resident_fraction(path)


def resident_fraction(path: Path) -> float:
    """The part of the file that is in memory now, 0 to 1, by mincore(2). Raises OSError."""
    size = path.stat().st_size
    if not size:
        return 1.0
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapping:
        # A private, read-only mapping has no writable buffer to take an address of; numpy gives it all the same.
        address = np.frombuffer(mapping, dtype=np.uint8)
        result = _LIBC.mincore(ctypes.c_void_p(address.ctypes.data), ctypes.c_size_t(size), flags)
        error = ctypes.get_errno()
        del address
    if result != 0:
        raise OSError(error, os.strerror(error), str(path))
    return float((np.frombuffer(bytes(flags), dtype=np.uint8) & 1).mean())

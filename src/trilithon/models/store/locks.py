"""Named locks between the processes that use a store. A lock ends with its process, however that ends."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trilithon.files import try_lock as flock
from trilithon.models.store.safe_dir import SafeDir, translated

__all__ = ["Lock", "lock", "lock_names", "try_lock", "wait_for_lock"]

_FOLDER = "locks"
_SUFFIX = ".lock"
_POLL_SECONDS = 0.05


class Lock:
    """A lock that is held until `release`. Its file is removed with it when no other process uses it."""

    def __init__(self, safe_dir: SafeDir, name: str, descriptor: int, *, shared: bool):
        self._safe_dir, self._name, self._shared = safe_dir, name, shared
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        if self._descriptor is None:
            return
        try:
            # A process that waits on this file notices that it is gone, and opens a new one: see `_is_current`.
            if not self._shared or flock(self._descriptor):
                with suppress(OSError):
                    _unlink(self._safe_dir, self._name)
        finally:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def lock(safe_dir: SafeDir, name: str) -> Iterator[None]:
    """Hold the lock, which only one process can, and wait for it without a limit. Raises ModelError."""
    acquired = wait_for_lock(safe_dir, name, None)
    try:
        yield
    finally:
        acquired.release()


def wait_for_lock(safe_dir: SafeDir, name: str, on_wait: Callable[[], None] | None, *, shared: bool = False) -> Lock:
    """Wait for the lock. `on_wait` is called every 50 ms meanwhile, and may raise to give up."""
    while (acquired := try_lock(safe_dir, name, shared=shared)) is None:
        if on_wait is not None:
            on_wait()
        time.sleep(_POLL_SECONDS)
    return acquired


def try_lock(safe_dir: SafeDir, name: str, *, shared: bool = False) -> Lock | None:
    """None when another process holds the lock. Raises ModelError where the file system has no locks."""
    with translated(safe_dir.root):
        return _try_lock(safe_dir, name, shared=shared)


def lock_names(safe_dir: SafeDir) -> list[str]:
    """The locks that have a file, held or not."""
    return [name.removesuffix(_SUFFIX) for name in safe_dir.names((_FOLDER,)) if name.endswith(_SUFFIX)]


def _try_lock(safe_dir: SafeDir, name: str, *, shared: bool) -> Lock | None:
    while True:
        descriptor = safe_dir.open((_FOLDER, name + _SUFFIX), os.O_RDWR | os.O_CREAT)
        if not flock(descriptor, shared=shared):
            os.close(descriptor)
            return None
        if _is_current(safe_dir, name, descriptor):
            return Lock(safe_dir, name, descriptor, shared=shared)
        os.close(descriptor)


def _is_current(safe_dir: SafeDir, name: str, descriptor: int) -> bool:
    """Whether the locked file still has the name: its last holder may have removed it."""
    try:
        named = safe_dir.status((_FOLDER, name + _SUFFIX))
    except FileNotFoundError:
        return False
    locked = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)


def _unlink(safe_dir: SafeDir, name: str) -> None:
    with safe_dir.folder((_FOLDER,)) as folder:
        os.unlink(name + _SUFFIX, dir_fd=folder)

"""Locks between processes, one file each: they fall when their process ends, however it ends."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trilithon.files import try_lock as flock
from trilithon.models.store.safe_dir import SafeDir, translated

__all__ = ["Lock", "lock", "lock_names", "try_lock", "waited_lock"]

_FOLDER = "locks"
_SUFFIX = ".lock"
_POLL_SECONDS = 0.05


class Lock:
    """A lock that is held until `release`. Its file goes with it where nobody else wants it."""

    def __init__(self, rooted: SafeDir, name: str, descriptor: int, *, shared: bool):
        self._rooted, self._name, self._descriptor, self._shared = rooted, name, descriptor, shared

    def release(self) -> None:
        if self._descriptor < 0:
            return
        try:
            # Whoever waits on this very file finds it gone, and opens a new one: see `_is_current`.
            if not self._shared or flock(self._descriptor):
                with suppress(OSError):
                    _unlink(self._rooted, self._name)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def lock(rooted: SafeDir, name: str) -> Iterator[None]:
    """Held by one process at a time; waits as long as it takes."""
    held = waited_lock(rooted, name, None)
    try:
        yield
    finally:
        held.release()


def waited_lock(rooted: SafeDir, name: str, waiting: Callable[[], None] | None, *, shared: bool = False) -> Lock:
    """`waiting` is called again and again while another process has it, and may raise to give up."""
    while (held := try_lock(rooted, name, shared=shared)) is None:
        if waiting is not None:
            waiting()
        time.sleep(_POLL_SECONDS)
    return held


def try_lock(rooted: SafeDir, name: str, *, shared: bool = False) -> Lock | None:
    """None when another holds it. Raises ModelError where no lock can be had."""
    with translated(rooted.root):
        return _try_lock(rooted, name, shared=shared)


def lock_names(rooted: SafeDir) -> list[str]:
    return [name.removesuffix(_SUFFIX) for name in rooted.names((_FOLDER,)) if name.endswith(_SUFFIX)]


def _try_lock(rooted: SafeDir, name: str, *, shared: bool) -> Lock | None:
    while True:
        descriptor = rooted.open((_FOLDER, name + _SUFFIX), os.O_RDWR | os.O_CREAT)
        if not flock(descriptor, shared=shared):
            os.close(descriptor)
            return None
        if _is_current(rooted, name, descriptor):
            return Lock(rooted, name, descriptor, shared=shared)
        os.close(descriptor)


def _is_current(rooted: SafeDir, name: str, descriptor: int) -> bool:
    """Whether the locked file still bears the name: the one who held it before may have removed it."""
    try:
        named = rooted.status((_FOLDER, name + _SUFFIX))
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def _unlink(rooted: SafeDir, name: str) -> None:
    with rooted.folder((_FOLDER,)) as folder:
        os.unlink(name + _SUFFIX, dir_fd=folder)

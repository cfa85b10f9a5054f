"""Where KV caches lie on their way from one process to another: files in memory, private to the user, gone at once."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trilithon.children.wire import Moved
from trilithon.runtime.process import workspace

__all__ = ["Transfer"]

_MEMORY = Path("/dev/shm")
# A file in memory takes memory: so much of what is free there may be used.
_USED_FRACTION = 0.5


class Transfer:
    """Use `Transfer.open`. `moved_bytes` counts everything that went through."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.moved_bytes = 0
        self._bytes_per_token = 0.0
        self._numbers = itertools.count(1)

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator["Transfer"]:
        """In memory where the system has such a folder, else among the temporary files."""
        usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
        with workspace(_MEMORY if usable else None) as folder:
            yield cls(folder)

    def has_room_for(self, tokens: int) -> bool:
        free = shutil.disk_usage(self.folder).free
        return tokens * self._bytes_per_token <= _USED_FRACTION * free

    @contextlib.contextmanager
    def file(self) -> Iterator[str]:
        """The name of a new file in the folder; it is removed at the end."""
        name = f"{next(self._numbers)}.kv"
        try:
            yield name
        finally:
            (self.folder / name).unlink(missing_ok=True)

    def note(self, moved: Moved) -> None:
        self.moved_bytes += moved.size_bytes
        if moved.tokens:
            self._bytes_per_token = moved.size_bytes / moved.tokens

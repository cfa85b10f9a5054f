"""The way of a KV cache from one process to another: a file in memory, private to the user, gone at once."""

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

from trilithon.engines.wire.messages import CacheTransfer
from trilithon.errors import EngineError, EngineTimeout, RunError
from trilithon.runtime.memory_need import available_bytes
from trilithon.runtime.process import workspace
from trilithon.runtime.runner import Runner

__all__ = ["MoveFailed", "Transfer", "within"]

T = TypeVar("T")

_MEMORY = Path("/dev/shm")
# A file in memory takes memory: so much of what is free there may be used.
_USED_FRACTION = 0.5
_NO_ROOM = 507  # HTTP's own word for it


class MoveFailed(Exception):
    """`side` did not do its part, and `error` says why."""

    def __init__(self, side: Runner, error: RunError):
        super().__init__(str(error))
        self.side = side
        self.error = error


class Transfer:
    """Use `Transfer.open`. `moved_bytes` counts everything that went through."""

    def __init__(self, folder: Path, bytes_per_token: float):
        self.folder = folder
        self.moved_bytes = 0
        self._bytes_per_token = bytes_per_token
        self._numbers = itertools.count(1)
        self._wanted: set[str] = set()
        self._saving: set[asyncio.Task[CacheTransfer]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, bytes_per_token: float) -> AsyncIterator["Transfer"]:
        """In memory where the system has such a folder, else among the temporary files. `bytes_per_token` is what a
        KV cache should take; later it is known."""
        usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
        with workspace(_MEMORY if usable else None) as folder:
            transfer = cls(folder, bytes_per_token)
            try:
                yield transfer
            finally:
                await asyncio.gather(*transfer._saving, return_exceptions=True)

    def has_room_for(self, tokens: int) -> bool:
        free = shutil.disk_usage(self.folder).free
        available = available_bytes()
        if available is not None:  # the folder's limit says nothing of what others have taken of the memory
            free = min(free, available)
        return tokens * self._bytes_per_token <= _USED_FRACTION * free

    async def move(
        self,
        source: Runner,
        target: Runner,
        slot: int,
        *,
        watched: Runner | None = None,
        limit_seconds: float | None = None,
    ) -> int:
        """Bring a slot's cache from one side to the other; the number of tokens that arrived. `watched` gets so long
        for its part. Raises MoveFailed."""
        with self._file() as name:
            await _part(source, self._save(source, slot, name), watched, limit_seconds)
            restored = await _part(target, target.restore_slot(slot, name), watched, limit_seconds)
        return restored.tokens

    async def _save(self, source: Runner, slot: int, name: str) -> CacheTransfer:
        """To its end, also when nobody waits any more: the engine writes on, and the file would come after its
        removal."""
        saving = asyncio.create_task(source.save_slot(slot, name))
        self._saving.add(saving)
        saving.add_done_callback(self._saved)
        saved = await asyncio.shield(saving)
        self._note(saved, self.folder / name)
        return saved

    def _saved(self, saving: asyncio.Task[CacheTransfer]) -> None:
        self._saving.discard(saving)
        if not saving.cancelled():
            saving.exception()  # whoever still waits for it is told; nobody else has to be
        self._sweep()

    @contextlib.contextmanager
    def _file(self) -> Iterator[str]:
        """The name of a new file in the folder; it is removed at the end."""
        name = f"{next(self._numbers)}.kv"
        self._wanted.add(name)
        try:
            yield name
        finally:
            self._wanted.discard(name)
            self._sweep()

    def _sweep(self) -> None:
        """Also what an engine that was given up has written since."""
        for path in self.folder.glob("*.kv"):
            if path.name not in self._wanted:
                path.unlink(missing_ok=True)

    def _note(self, saved: CacheTransfer, path: Path) -> None:
        """Raises Refused when less was written than was said: llama-server does not tell of a full disk."""
        written = path.stat().st_size if path.exists() else 0
        if written != saved.size_bytes or not written:
            raise EngineError(
                f"the KV cache was not written whole: {written} bytes of {saved.size_bytes}",
                status=_NO_ROOM,
                cause="no room in memory for the KV cache",
            )
        self.moved_bytes += written
        if saved.tokens:
            self._bytes_per_token = written / saved.tokens


async def _part(
    side: Runner, answer: Awaitable[CacheTransfer], watched: Runner | None, limit_seconds: float | None
) -> CacheTransfer:
    """One side's part of a move."""
    try:
        return await (within(limit_seconds, answer) if side is watched else answer)
    except RunError as error:
        raise MoveFailed(side, error) from error


async def within(limit_seconds: float | None, answer: Awaitable[T]) -> T:
    """Raises Hung when it is not there in time."""
    try:
        async with asyncio.timeout(limit_seconds):
            return await answer
    except TimeoutError:
        raise EngineTimeout(
            f"it took {limit_seconds or 0:.1f} s, much more than usual, and was given up", cause="hang"
        ) from None

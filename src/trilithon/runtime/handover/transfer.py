"""Transfers a KV cache from one process to another: through a file in memory, private to the user, removed at once."""

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

__all__ = ["Transfer", "TransferFailed", "within"]

T = TypeVar("T")

_MEMORY = Path("/dev/shm")
# A file in memory takes memory: so much of the free memory may be used.
_USABLE_FRACTION = 0.5
_INSUFFICIENT_STORAGE = 507  # HTTP status


class TransferFailed(Exception):
    """`half` failed, and `error` says why."""

    def __init__(self, half: Runner, error: RunError):
        super().__init__(str(error))
        self.half = half
        self.error = error


class Transfer:
    """Use `Transfer.open`. `total_bytes` counts all transfers."""

    def __init__(self, folder: Path, bytes_per_token: float):
        self.folder = folder
        self.total_bytes = 0
        self._bytes_per_token = bytes_per_token
        self._numbers = itertools.count(1)
        self._current: set[str] = set()
        self._saving: set[asyncio.Task[CacheTransfer]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, bytes_per_token: float) -> AsyncIterator["Transfer"]:
        """In memory where the system has such a folder, else among the temporary files. `bytes_per_token` is the
        expected size of a KV cache; the first transfer corrects it."""
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
        if available is not None:  # the folder's limit does not count the memory of processes
            free = min(free, available)
        return tokens * self._bytes_per_token <= _USABLE_FRACTION * free

    async def run(
        self,
        source: Runner,
        target: Runner,
        slot: int,
        *,
        watched: Runner | None = None,
        limit_seconds: float | None = None,
    ) -> int:
        """Copy a slot's cache from one half to the other; returns the number of tokens. `watched` gets `limit_seconds`
        for its part. Raises TransferFailed."""
        with self._file() as name:
            await _of_half(source, self._save(source, slot, name), watched, limit_seconds)
            restored = await _of_half(target, target.restore_slot(slot, name), watched, limit_seconds)
        return restored.tokens

    async def _save(self, source: Runner, slot: int, name: str) -> CacheTransfer:
        """Continues when it is cancelled: the engine goes on writing, and the file would appear after its removal."""
        saving = asyncio.create_task(source.save_slot(slot, name))
        self._saving.add(saving)
        saving.add_done_callback(self._saved)
        saved = await asyncio.shield(saving)
        self._check(saved, self.folder / name)
        return saved

    def _saved(self, saving: asyncio.Task[CacheTransfer]) -> None:
        self._saving.discard(saving)
        if not saving.cancelled():
            saving.exception()  # raised where it is awaited
        self._sweep()

    @contextlib.contextmanager
    def _file(self) -> Iterator[str]:
        """The name of a new file in the folder; it is removed at the end."""
        name = f"{next(self._numbers)}.kv"
        self._current.add(name)
        try:
            yield name
        finally:
            self._current.discard(name)
            self._sweep()

    def _sweep(self) -> None:
        """Also removes what an engine has written since it was given up."""
        for path in self.folder.glob("*.kv"):
            if path.name not in self._current:
                path.unlink(missing_ok=True)

    def _check(self, saved: CacheTransfer, path: Path) -> None:
        """Raises EngineError when less was written than reported: llama-server does not report a full disk."""
        written = path.stat().st_size if path.exists() else 0
        if written != saved.size_bytes or not written:
            raise EngineError(
                f"the KV cache was not written completely: {written} bytes of {saved.size_bytes}",
                status=_INSUFFICIENT_STORAGE,
                cause="no room in memory for the KV cache",
            )
        self.total_bytes += written
        if saved.tokens:
            self._bytes_per_token = written / saved.tokens


async def _of_half(
    half: Runner, answer: Awaitable[CacheTransfer], watched: Runner | None, limit_seconds: float | None
) -> CacheTransfer:
    try:
        return await (within(limit_seconds, answer) if half is watched else answer)
    except RunError as error:
        raise TransferFailed(half, error) from error


async def within(limit_seconds: float | None, answer: Awaitable[T]) -> T:
    """Raises EngineTimeout after the limit."""
    try:
        async with asyncio.timeout(limit_seconds):
            return await answer
    except TimeoutError:
        raise EngineTimeout(
            f"it took more than {limit_seconds or 0:.1f} s, much longer than expected, and was given up", cause="hang"
        ) from None

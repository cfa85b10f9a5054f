"""Threads for long work on the store: beside the loop's own, which look models up for every request."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from trilithon.serve.http.errors import ApiError

__all__ = ["MOST_AT_ONCE", "in_library_thread"]

MOST_AT_ONCE: Final = 8
_RETRY_SECONDS: Final = 60.0

_THREADS = ThreadPoolExecutor(max_workers=MOST_AT_ONCE, thread_name_prefix="library")
_PLACES = threading.BoundedSemaphore(MOST_AT_ONCE)

T = TypeVar("T")


def in_library_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Raises Problem when so many are at work that this one would wait in silence."""
    if not _PLACES.acquire(blocking=False):
        raise ApiError(
            f"{MOST_AT_ONCE} models are being pulled or created; wait until one is finished",
            status=503,
            kind="overloaded_error",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def placed() -> T:
        try:
            return work()
        finally:
            _PLACES.release()

    return asyncio.get_running_loop().run_in_executor(_THREADS, placed)

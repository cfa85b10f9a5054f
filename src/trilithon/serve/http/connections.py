"""How many connections the server keeps, and what it says when descriptors run out."""

import asyncio
import errno
import logging
import resource
import time
from typing import Any

__all__ = ["ACCEPTED_AT_ONCE", "most_connections", "note_full", "quiet_accept_errors"]

# For children, their logs and sockets, databases, files of models and downloads; and for what one round of the accept
# loop takes before the first of its connections is counted.
_RESERVED_FILES = 64
# A client at work has its connection and one to the engine.
_FILES_EACH = 2
_FEWEST, _MOST = 8, 4096
ACCEPTED_AT_ONCE = 16
"""asyncio accepts up to this many connections before any of them is handled (its `backlog`)."""
_LOG_SECONDS = 60.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger("trilithon.connections")


def most_connections() -> int:
    """By the limit of open files, which others may change while the server runs."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST
    return min(max((files - _RESERVED_FILES) // _FILES_EACH, _FEWEST), _MOST)


class _RareLine:
    """A warning that is written once a minute at most, with how often it was due."""

    def __init__(self, text: str):
        self._text = text
        self._count = 0
        self._written_at = float("-inf")

    def due(self, *words: object) -> None:
        self._count += 1
        if time.monotonic() - self._written_at >= _LOG_SECONDS:
            _log.warning(self._text, *words, extra={"facts": {"times": self._count}})
            self._written_at, self._count = time.monotonic(), 0


_exhausted = _RareLine("no connection can be accepted: %s; raise the limit of open files (ulimit -n)")
_full = _RareLine("all %d connections are taken; idle ones make room; raise the limit of open files (ulimit -n)")


def note_full(most: int) -> None:
    """Say it in the log."""
    _full.due(most)


def quiet_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """asyncio reports an exhausted system for every connection that it tries to accept (CPython's selector_events,
    `_accept_connection`): thousands of tracebacks a second. One line a minute says it."""
    before = loop.get_exception_handler() or (lambda current, context: current.default_exception_handler(context))

    def handle(current: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED and "accept" in str(context.get("message")):
            _exhausted.due(error.strerror)
        else:
            before(current, context)

    loop.set_exception_handler(handle)

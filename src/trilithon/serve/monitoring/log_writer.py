"""Lines to a pipe or a terminal whose reader may stop: a pager that waits, a terminal after Ctrl-S, a dead connection.
Who writes them here never waits; a write that blocks holds up a thread that does nothing else."""

import os
import select
import threading
from collections import deque

__all__ = ["LogWriter"]

_MOST_LINES = 5000  # about 2 MB of the server's log
_PATIENCE_SECONDS = 1.0


class LogWriter:
    """To a file descriptor, which has to stay open. Lines beyond `most_lines` that wait are left out."""

    def __init__(self, descriptor: int, most_lines: int = _MOST_LINES):
        self._descriptor = descriptor
        self._most_lines = most_lines
        self._waiting: deque[str] = deque()
        self._left_out = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)  # it may block for ever
        self._thread.start()

    def write(self, line: str) -> None:
        """`line` has no line feed at its end."""
        with self._changed:
            if len(self._waiting) < self._most_lines:
                self._waiting.append(line)
                self._changed.notify_all()
            else:
                self._left_out += 1

    def take_left_out(self) -> int:
        """How many lines were left out since the last call; 0 as long as others wait."""
        with self._changed:
            if self._waiting:
                return 0
            number, self._left_out = self._left_out, 0
            return number

    def flush(self) -> bool:
        """Wait until everything is written, but for a second at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, _PATIENCE_SECONDS)

    def close(self) -> None:
        """What was not written within a second never is."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                line = self._waiting[0]
            self._put(f"{line}\n".encode(errors="backslashreplace"))
            with self._changed:
                self._waiting.popleft()  # only now: flush waits for the line that is being written, too
                self._changed.notify_all()

    def _put(self, octets: bytes) -> None:
        while octets:
            try:
                octets = octets[os.write(self._descriptor, octets) :]
            except BlockingIOError:  # the descriptor is non-blocking, which who shares it may have set
                room = select.poll()
                room.register(self._descriptor, select.POLLOUT)
                room.poll()
            except OSError:  # the reader is gone or the disk is full: there is no other place to tell it
                return

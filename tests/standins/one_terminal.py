"""stdout and stderr of this process on one terminal."""

import fcntl
import os
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def one_terminal(columns: int = 0) -> Iterator[list[str]]:
    """All that it got is one text in the list afterwards. `columns` is its width, 0 for unknown."""
    master, slave = os.openpty()
    if columns:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(master, 65536):
                pieces.append(piece)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    shown: list[str] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        os.fdopen(slave, "w", encoding="utf-8", errors="replace") as stream,
        Path(os.devnull).open() as nothing,
    ):
        patch.setattr(sys, "stdin", nothing)
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        if columns:
            patch.setenv("COLUMNS", str(columns))  # rich and click ask for it
        reader.start()
        yield shown
    reader.join()
    os.close(master)
    shown.append(b"".join(pieces).decode("utf-8", "surrogateescape"))

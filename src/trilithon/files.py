"""Small files that several processes read and replace: each finds the old text or the new one, never half of it."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trilithon.errors import UserError

__all__ = ["changing", "replace_file"]


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Reading a file of the data folder and writing it as one step, also with another process at it: it waits for us,
    and we for it. Raises UserError when the folder cannot be written, also for the body's OSErrors."""
    file = path.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(
            f"{file.parent} cannot be written: {error.strerror}; free some space there, check its permissions, or name "
            "another folder with TRILITHON_DATA"
        ) from error


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Whole or not at all, also when the power goes; a failure leaves nothing behind. Raises OSError."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False, encoding="utf-8") as new:
        try:
            new.write(text)
            new.flush()
            os.fchmod(new.fileno(), mode)
            os.fsync(new.fileno())
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink()
            raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name has to be on the disk too
    finally:
        os.close(folder)

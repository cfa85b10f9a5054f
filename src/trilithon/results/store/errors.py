"""Every way in which the results database can fail, as one StoreError in one line that ends with the fix."""

import shlex
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from trilithon.errors import StoreError

__all__ = ["refuse_foreign", "translated"]

_ELSEWHERE = "or set TRILITHON_DATA to another folder"
_FULL_BYTES = 1 << 20
_MAGIC = b"SQLite format 3\0"


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the database at `path` into StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_message(path, error)) from error
    except (JSONDecodeError, zlib.error) as error:
        raise StoreError(_corrupt(path)) from error
    except OSError as error:
        raise StoreError(
            "{filename}: {reason}; fix that, {elsewhere}",
            filename=error.filename or path,
            reason=error.strerror,
            elsewhere=_ELSEWHERE,
        ) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise StoreError("results database {path} cannot hold a value: {reason}", path=path, reason=error) from error


def refuse_foreign(path: Path) -> None:
    """SQLite takes a file of a few bytes for an empty database and would write over it. Raises StoreError, OSError."""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start not in (b"", _MAGIC):
            raise StoreError(_foreign(path))


def _message(path: Path, error: sqlite3.Error) -> str:
    # The low byte is the kind of error, the rest says more. Errors of the module itself carry no code.
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return _full(path)
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _is_full(path):
            return _full(path)
        case sqlite3.SQLITE_NOTADB:
            return _foreign(path)
        case sqlite3.SQLITE_CORRUPT:
            return _corrupt(path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"results database {path} cannot be written ({error}); make it and its folder writable, {_ELSEWHERE}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"results database {path} is locked by another program; close that and try again"
        case _:
            return f"results database {path}: {error}"


def _full(path: Path) -> str:
    return f"no space left for results database {path}, whose contents are intact; free some there, {_ELSEWHERE}"


def _foreign(path: Path) -> str:
    return f"{path} is not a results database and was not changed; {_move(path)}, {_ELSEWHERE}"


def _corrupt(path: Path) -> str:
    return f"results database {path} is corrupt and was not changed; {_move(path)}, {_ELSEWHERE}"


def _move(path: Path) -> str:
    return f"move it away (mv {shlex.quote(str(path))} {shlex.quote(f'{path}.bad')})"


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _FULL_BYTES
    except OSError:
        return False

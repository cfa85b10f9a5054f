"""A Machine that answers from a capture, in place of a kernel."""

import base64
import errno
import fnmatch
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trilithon.board.sysfs import Access, Machine

__all__ = ["Capture", "CapturedMachine", "CapturedPath"]


class CapturedPath(BaseModel):
    """What was read of one path. `text` and `base64` are its content: both None where it had none, or was not read.
    `link` is the last name of its target, `after` the texts behind each marker in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    access: Access
    text: str | None = None
    base64: str | None = None
    link: str | None = None
    usable: bool = False
    free_bytes: int | None = Field(default=None, ge=0)
    identity: list[int] | None = Field(default=None, min_length=2, max_length=2)
    after: dict[str, list[str]] = Field(default_factory=dict)

    def content(self) -> bytes | None:
        """Raises ValueError for text that is not base64."""
        if self.base64 is not None:
            return base64.b64decode(self.base64, validate=True)
        return None if self.text is None else self.text.encode("utf-8", "surrogateescape")


class Capture(BaseModel):
    """`globs` are the paths that matched each pattern; `page_bytes` is None for a capture of a folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uname_machine: str
    page_bytes: int | None = Field(ge=1)
    globs: dict[str, list[str]]
    paths: dict[str, CapturedPath]


class CapturedMachine(Machine):
    """`file` is where the capture comes from. A path that was not looked for at the time is absent."""

    capture: Capture

    def __init__(self, capture: Capture, file: Path):
        super().__init__(file)
        object.__setattr__(self, "capture", capture)  # Machine is frozen

    @classmethod
    def of(cls, values: Mapping[str, Any], file: Path) -> "CapturedMachine":
        """Raises ValueError, in one line, for values that are no capture."""
        try:
            capture = Capture.model_validate(values)
            for entry in capture.paths.values():
                entry.content()
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return cls(capture, file)

    @property
    def page_bytes(self) -> int | None:
        return self.capture.page_bytes

    @property
    def uname_machine(self) -> str:
        return self.capture.uname_machine

    def glob(self, pattern: str) -> list[str]:
        if pattern in self.capture.globs:
            return list(self.capture.globs[pattern])
        parts = PurePosixPath(pattern).parts
        present = (path for path, entry in self.capture.paths.items() if entry.access != "absent" or entry.link)
        return [path for path in present if _fits(path, parts)]

    def link(self, path: str) -> str | None:
        return self.entry(path).link

    def texts_after(self, path: str, marker: bytes, *, length: int = 64) -> Iterator[str]:
        return (text[:length] for text in self.entry(path).after.get(marker.decode("latin-1"), ()))

    def identity(self, path: str) -> tuple[int, int] | None:
        identity = self.entry(path).identity
        return None if identity is None else (identity[0], identity[1])

    def free_bytes(self, path: str) -> int | None:
        return self.entry(path).free_bytes

    def access(self, path: str) -> Access:
        return self.entry(path).access

    def usable(self, path: str) -> bool:
        return self.entry(path).usable

    def write(self, path: str, text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def hold(self, path: str) -> int | None:
        """None: a capture has no moments to sample."""
        return None

    def entry(self, path: str) -> CapturedPath:
        return self.capture.paths.get(path) or CapturedPath(access="absent")

    def _bytes(self, path: str) -> bytes | None:
        return self.entry(path).content()


def _fits(path: str, pattern: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))

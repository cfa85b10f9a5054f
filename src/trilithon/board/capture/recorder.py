"""A Machine that keeps what it reads."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from trilithon.board.sysfs import Access, Machine

__all__ = ["Recorder"]

Value = TypeVar("Value")


class Recorder(Machine):
    """Reads below `root`, and keeps every answer, also that a path is absent."""

    _paths: dict[str, dict[str, Any]]
    _globs: dict[str, list[str]]

    def __init__(self, root: Path = Path("/")):
        super().__init__(root)
        object.__setattr__(self, "_paths", {})  # Machine is frozen
        object.__setattr__(self, "_globs", {})

    def capture(self) -> dict[str, Any]:
        """JSON values in the form of `CapturedMachine.of`."""
        return {
            "uname_machine": self.uname_machine,
            "page_bytes": self.page_bytes,
            "globs": dict(sorted(self._globs.items())),
            "paths": dict(sorted(self._paths.items())),
        }

    def glob(self, pattern: str) -> list[str]:
        self._globs[pattern] = super().glob(pattern)
        return self._globs[pattern]

    def link(self, path: str) -> str | None:
        return self._kept(path, "link", super().link(path))

    def texts_after(self, path: str, marker: bytes, *, length: int = 64) -> Iterator[str]:
        texts = list(super().texts_after(path, marker, length=length))
        self._entry(path).setdefault("after", {})[marker.decode("latin-1")] = texts
        return iter(texts)

    def identity(self, path: str) -> tuple[int, int] | None:
        return self._kept(path, "identity", super().identity(path))

    def free_bytes(self, path: str) -> int | None:
        return self._kept(path, "free_bytes", super().free_bytes(path))

    def access(self, path: str) -> Access:
        return self._kept(path, "access", super().access(path))

    def usable(self, path: str) -> bool:
        return self._kept(path, "usable", super().usable(path))

    def hold(self, path: str) -> int | None:
        descriptor = super().hold(path)
        if descriptor is not None:
            self._bytes(path)
        return descriptor

    def _bytes(self, path: str) -> bytes | None:
        data = super()._bytes(path)
        try:
            self._kept(path, "text", None if data is None else data.decode())
        except UnicodeDecodeError:
            self._kept(path, "base64", base64.b64encode(data or b"").decode())
        return data

    def _entry(self, path: str) -> dict[str, Any]:
        if path not in self._paths:
            self._paths[path] = {"access": super().access(path)}
        return self._paths[path]

    def _kept(self, path: str, name: str, value: Value) -> Value:
        self._entry(path)[name] = value
        return value

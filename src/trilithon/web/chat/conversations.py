"""Conversations on the server's disk: a file each, in a folder for each key, so that nobody reads another's."""

import json
import re
import secrets
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trilithon.errors import UserError
from trilithon.files import replace_file
from trilithon.web.chat.tree import Conversation

__all__ = ["Conversations", "Heading"]

_ID = re.compile(r"[0-9a-f]{16}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOBODY = "local"  # where no key is asked for, everybody is one
_MOST_BYTES = 64 << 20
_MOST = 500
_FOLDER_MODE = 0o700
# A title stands near the file's beginning; the list is drawn often, and pictures make a file long.
_TITLE = re.compile(r'"title": ("(?:[^"\\]|\\.)*")')
_TITLE_WITHIN_BYTES = 4096

_open: weakref.WeakValueDictionary[Path, Conversation] = weakref.WeakValueDictionary()
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Heading:
    """Of one in the list."""

    id: str
    title: str


class Conversations:
    """Of one key's owner. Everything raises UserError where the disk is full or closed. A conversation that several
    pages of this process show is one object, so that none of them writes over what another one added."""

    def __init__(self, data: Path, key_name: str):
        own = f"key-{key_name}" if _OWNER.fullmatch(key_name) else _NOBODY
        self._folder = data / "conversations" / own

    def headings(self) -> list[Heading]:
        """The newest first, 500 at most. What is damaged is not among them, and hides no other."""
        listed = []
        for path in self._newest()[:_MOST]:
            title = _title(path)
            if title is not None:
                listed.append(Heading(path.stem, title))
        return listed

    def begin(self) -> Conversation:
        """A new one, which is on the disk once it is kept."""
        return Conversation(id=secrets.token_hex(8), created=datetime.now(UTC).isoformat(timespec="seconds"))

    def read(self, id_: str) -> Conversation:
        path = self._path(id_)
        with _opening:
            return _open.get(path) or _open.setdefault(path, self._read(path))

    def _read(self, path: Path) -> Conversation:
        id_ = path.stem
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise UserError(f"the conversation {id_} is too long to be shown; see {path.name} on the server")
            return Conversation.of_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"the conversation {id_} cannot be read; begin a new one") from error

    def keep(self, conversation: Conversation) -> None:
        path = self._path(conversation.id)
        content = json.dumps(conversation.as_json(), ensure_ascii=False)
        if len(content.encode()) > _MOST_BYTES:
            raise UserError("the conversation is too long to be kept; go on in a new one, with fewer pictures")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
            with _opening:
                replace_file(path, content)
                _open.setdefault(path, conversation)
        except OSError as error:
            raise UserError(
                f"the conversation cannot be kept: {error.strerror}; free some space in {path.parent}"
            ) from error

    def remove(self, id_: str) -> None:
        path = self._path(id_)
        with _opening:
            _open.pop(path, None)
            path.unlink(missing_ok=True)

    def _path(self, id_: str) -> Path:
        if not _ID.fullmatch(id_):
            raise UserError("there is no such conversation; choose one of the list")
        return self._folder / f"{id_}.json"

    def _newest(self) -> Sequence[Path]:
        try:
            dated = [
                (path.stat().st_mtime_ns, path) for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem)
            ]
        except OSError:
            return ()
        return [path for _, path in sorted(dated, reverse=True)]


def _title(path: Path) -> str | None:
    """None for what is no conversation, as far as its beginning tells."""
    try:
        with path.open("rb") as file:
            match = _TITLE.search(file.read(_TITLE_WITHIN_BYTES).decode("utf-8", "replace"))
        return None if match is None else str(json.loads(match[1]))
    except (OSError, ValueError):
        return None

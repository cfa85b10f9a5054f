"""Responses that a later request can go on from (`previous_response_id`): in one file, bounded, each for the client
that it was made for.

A response is kept with its own input alone and the id of the one before, so that a long conversation is kept once.
Those that were not used for longest go first."""

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from trilithon.serve.http.errors import ApiError
from trilithon.serve.validation import MOST_MESSAGES

__all__ = ["ResponseStore", "StoredResponse"]

_MOST_RESPONSES: Final = 10_000
_BUSY_SECONDS: Final = 10.0
_MOST_LETTERS: Final = 64 << 20  # of a conversation, as of a body
_SCHEMA: Final = """CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT NOT NULL, used REAL NOT NULL, size INTEGER NOT NULL,
    input TEXT NOT NULL, response TEXT NOT NULL)"""
_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """As JSON: both may be megabytes, which are passed on unread. `items` are the items of its own input."""

    items: bytes
    response: bytes


class ResponseStore:
    """`most_bytes` 0 keeps nothing. `owner` is the name of a client's key, empty where none is asked for."""

    def __init__(self, path: Path, most_bytes: int, most_responses: int = _MOST_RESPONSES):
        self._path = path
        self._most_bytes = most_bytes
        self._most_responses = most_responses

    @property
    def keeps(self) -> bool:
        return self._most_bytes > 0

    async def put(self, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]], owner: str) -> bool:
        """Whether it is kept: not where it would take more than a quarter of the store, nor where the disk is full,
        which the log says."""
        try:
            return await asyncio.to_thread(self._put, response, items, owner)
        except (OSError, sqlite3.Error) as error:
            _log.warning("a response was not stored in %s: %s", self._path, error)
            return False

    async def conversation(self, response_id: str, owner: str) -> list[dict[str, Any]]:
        """The items of a response and of all before it, input and output. Raises ApiError where one is not kept."""
        return await self._read(lambda table: _conversation(table, response_id, owner))

    async def get(self, response_id: str, owner: str) -> StoredResponse:
        """Raises ApiError for one that is not kept."""
        row = await self._read(lambda table: _row(table, response_id, owner))
        if row is None:
            raise _missing(response_id, 404)
        return StoredResponse(items=row[1].encode(), response=row[2].encode())

    async def remove(self, response_id: str, owner: str) -> None:
        """Raises ApiError for one that is not kept."""
        words = "DELETE FROM responses WHERE id = ? AND owner = ?"
        if not await self._read(lambda table: table.execute(words, (response_id, owner)).rowcount):
            raise _missing(response_id, 404)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.to_thread(self._with_table, work)
        except (OSError, sqlite3.Error) as error:
            message = f"the stored responses in {self._path.name} cannot be read: {error}; remove that file"
            raise ApiError(message, status=500, kind="server_error") from error

    def _put(self, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]], owner: str) -> bool:
        texts = json.dumps(items), json.dumps({**response, "store": True})
        size = sum(map(len, texts))
        if size > self._most_bytes // 4:
            return False
        previous = response.get("previous_response_id") or ""
        row = (response["id"], owner, previous, time.time(), size, *texts)
        return self._with_table(lambda table: self._insert(table, row))

    def _with_table(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._opened() as table, table:
            return work(table)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)  # conversations are their owner's alone; sqlite gives its other files this mode
        with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as table:
            table.execute("PRAGMA auto_vacuum = FULL")  # so that what goes leaves the disk
            table.execute(_SCHEMA)
            yield table

    def _insert(self, table: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
        table.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        count, size = table.execute("SELECT count(*), sum(size) FROM responses").fetchone()
        if count <= self._most_responses and size <= self._most_bytes:
            return True
        for old, old_size in table.execute("SELECT id, size FROM responses ORDER BY used, rowid").fetchall():
            if count <= self._most_responses and size <= self._most_bytes:
                break
            table.execute("DELETE FROM responses WHERE id = ?", (old,))
            count, size = count - 1, size - old_size
        return True


def _row(table: sqlite3.Connection, response_id: str, owner: str) -> tuple[str, str, str] | None:
    words = "SELECT previous, input, response FROM responses WHERE id = ? AND owner = ?"
    row: tuple[str, str, str] | None = table.execute(words, (response_id, owner)).fetchone()
    return row


def _conversation(table: sqlite3.Connection, response_id: str, owner: str) -> list[dict[str, Any]]:
    turns: list[list[dict[str, Any]]] = []
    at, seen, letters = response_id, 0, 0
    while at:
        row = _row(table, at, owner)
        if row is None:
            raise _missing(at, 400)
        letters += len(row[1]) + len(row[2])
        if letters > _MOST_LETTERS:  # before it is parsed
            raise ApiError(f"the conversation is over {_MOST_LETTERS >> 20} MiB; begin a new one", status=400)
        table.execute("UPDATE responses SET used = ? WHERE id = ?", (time.time(), at))
        turns.append([*json.loads(row[1]), *json.loads(row[2])["output"]])
        seen += len(turns[-1])
        if seen > MOST_MESSAGES:
            raise ApiError(f"the conversation has over {MOST_MESSAGES} items; begin a new one", status=400)
        at = row[0]
    return [entry for turn in reversed(turns) for entry in turn]


def _missing(response_id: str, status: int) -> ApiError:
    shown = response_id[:80]
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    message = f"Previous response with id '{shown}' not found; send the whole conversation as input"
    if status == 404:
        message = f"Response with id '{shown}' not found; it was not stored, or removed for newer ones"
    return ApiError(message, status=status, kind=kind, field="previous_response_id" if status == 400 else "")

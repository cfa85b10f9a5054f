"""Keys that clients show: named, revocable, kept as hashes, and read anew by a running server when they change.

A key is 256 random bits, so there is nothing to guess: one SHA-256 keeps it as well as a slow hash of a password would,
and costs a request a microsecond. Comparing takes the same time whichever key is right."""

import hashlib
import hmac
import logging
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trilithon.errors import UserError
from trilithon.files import JsonStore, read_text
from trilithon.language import Message
from trilithon.serve.access.scopes import SCOPES
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = ["Key", "Keyring", "add_key", "key_store", "keys", "read_key_file", "remove_key"]

PREFIX = "trl-"
"""So that a key is known for one wherever it turns up."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET_BYTES = 32
_SHORTEST_KEY = 16
_MOST_KEYS = 1024
_CLOSED_TO = stat.S_IWOTH | stat.S_IWGRP
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`digest` is the SHA-256 of the key in hex, `created` in RFC 3339 (empty for one of a plain file), `scope` one of
    `serve.access.scopes`; keys of older files and of plain files are for everything."""

    name: str
    digest: str
    created: str = ""
    scope: str = "admin"


def key_store(configuration: Configuration) -> Path:
    return configuration.data / "keys.json"


def keys(configuration: Configuration) -> list[Key]:
    """In the order they were added. Raises UserError when the file is damaged, or open to others' changes."""
    return _read_store(key_store(configuration))


def add_key(configuration: Configuration, name: str, scope: str = "admin") -> str:
    """The new key itself, which is kept nowhere. Raises UserError for a name that is taken or cannot be spelled."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a valid key name: write letters, digits, dot, dash and underscore")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    store = _store(key_store(configuration))
    with store.locked():
        known = store.read() or []
        if any(key.name == name for key in known):
            raise UserError(f"a key {name} already exists; choose another name, or run: trilithon key rm {name}")
        if len(known) >= _MOST_KEYS:
            raise UserError(f"there are already {_MOST_KEYS} keys; remove some with: trilithon key rm NAME")
        store.write(_packed([*known, Key(name=name, digest=_digest(secret), created=created, scope=scope)]))
    return secret


def remove_key(configuration: Configuration, name: str) -> Key:
    """A running server refuses it from its next request on. Raises UserError when there is none of that name."""
    store = _store(key_store(configuration))
    with store.locked():
        known = store.read() or []
        for key in known:
            if key.name == name:
                store.write(_packed([other for other in known if other is not key]))
                return key
    fix = alternatives(name, (key.name for key in known))
    raise UserError(Message("there is no key {name}; {fix}", name=name, fix=fix))


def read_key_file(path: Path) -> list[Key]:
    """Plain keys, one a line; # begins a comment line. Raises UserError for a file that strangers can read, that is
    missing, holds no key, or one too short to be safe."""
    try:
        text = read_text(path, closed_to=_CLOSED_TO | stat.S_IROTH)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its path and permissions (ls -l)") from error
    except ValueError as error:
        raise UserError(f"{path} is not a file of keys: {error}; check its path") from error
    key_file = []
    for number, line in enumerate(text.splitlines(), start=1):
        secret = line.strip()
        if not secret or secret.startswith("#"):
            continue
        if len(secret) < _SHORTEST_KEY or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise UserError(
                f"{path}, line {number}: a key is {_SHORTEST_KEY} characters or more, ASCII without spaces; make one "
                "with: trilithon key add NAME"
            )
        key_file.append(Key(name=f"file-{number}", digest=_digest(secret)))
    if not key_file:
        raise UserError(f"{path} contains no key; write one per line, or make one with: trilithon key add NAME")
    return key_file


class Keyring:
    """The keys of a running server, from the store and from a plain file.

    Raises UserError for a file that is no good at the start; one that turns bad later is told in the log, and the keys
    that were good stay. `required` None asks for a key as soon as there is one, and from then on: when the last one
    is revoked, the door stays shut."""

    def __init__(self, store: Path | None = None, plain: Path | None = None, *, required: bool | None = None):
        self._sources = [_Source(store, _read_store)] if store is not None else []
        self._sources += [_Source(plain, read_key_file)] if plain is not None else []
        self._required = required
        self._known: tuple[tuple[Key, bytes], ...] = ()
        for source in self._sources:
            source.read()
        self._gather()

    def __len__(self) -> int:
        self._look()
        return len(self._known)

    @property
    def required(self) -> bool:
        self._look()
        return bool(self._required)

    def name_of(self, secret: str) -> str | None:
        """The name of the key; None for one that is not (or no more) known."""
        key = self.key_of(secret)
        return None if key is None else key.name

    def key_of(self, secret: str) -> Key | None:
        """None for one that is not (or no more) known."""
        self._look()
        digest = _digest(secret).encode()
        matched = None
        for key, known in self._known:
            if hmac.compare_digest(digest, known):
                matched = key
        return matched

    def _look(self) -> None:
        changed = [source for source in self._sources if source.refresh()]
        if changed:
            self._gather()

    def _gather(self) -> None:
        self._known = tuple((key, key.digest.encode()) for source in self._sources for key in source.keys)
        if self._known and self._required is None:
            self._required = True


_Stamp = tuple[int, int, int, int]


@dataclass(slots=True)
class _Source:
    path: Path
    load: Callable[[Path], list[Key]]
    keys: Sequence[Key] = ()
    stamp: _Stamp | None = None

    def read(self) -> None:
        self.stamp = _stamp(self.path)
        self.keys = self.load(self.path)

    def refresh(self) -> bool:
        """Whether the keys changed. One look at the file's times costs two microseconds."""
        stamp = _stamp(self.path)
        if stamp == self.stamp:
            return False
        self.stamp = stamp
        try:
            self.keys = () if stamp is None else self.load(self.path)
        except UserError as error:
            _log.warning("the keys were not reloaded: %s", error)
            return False
        return True


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _read_store(path: Path) -> list[Key]:
    return _store(path).read() or []


def _store(path: Path) -> JsonStore[list[Key]]:
    """A new file is its owner's alone (mode 600), from its first byte on."""
    return JsonStore(path=path, parse=_parsed, fix="remove it, and add the keys again", closed_to=_CLOSED_TO)


def _parsed(entries: list[dict[str, str]]) -> list[Key]:
    return [_key(entry) for entry in entries]


def _key(entry: dict[str, str]) -> Key:
    if not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise ValueError("a hash that is none")
    scope = entry.get("scope", "admin")
    if scope not in SCOPES:
        raise ValueError(f"the scope {scope!r} is unknown")
    return Key(name=str(entry["name"]), digest=entry["sha256"], created=str(entry["created"]), scope=scope)


def _packed(known: Sequence[Key]) -> list[dict[str, str]]:
    return [{"name": key.name, "sha256": key.digest, "created": key.created, "scope": key.scope} for key in known]

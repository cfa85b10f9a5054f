"""Folders with builds of engines that the user added or compiled here, in the file `builds.json`."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.files import JsonStore
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = ["Registered", "add", "built_folder", "check_name", "registered", "remove"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # the BUILD of ENGINE@BUILD/UNIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """`folder` has the engine's program or library; `name` is the BUILD of `ENGINE@BUILD/UNIT`; `facts` says how it was
    compiled (version, flags, compiler), for users and for results."""

    name: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


def registered(configuration: Configuration) -> list[Registered]:
    """In the order they were added. Raises UserError when the file is damaged."""
    return _store(configuration).read() or []


def add(configuration: Configuration, entry: Registered) -> None:
    """Adds `entry`, or replaces the entry of the same folder. Raises UserError for a name that is invalid, or that
    another folder has."""
    check_name(entry.name)
    store = _store(configuration)
    with store.locked():
        others = [other for other in registered(configuration) if other.folder != entry.folder]
        for other in others:
            if other.name == entry.name:
                raise UserError(
                    "{name} is already the build in {folder}; choose another name with --name, or run: trilithon "
                    "engines remove {name}",
                    name=entry.name,
                    folder=other.folder,
                )
        store.write(_json([*others, entry]))


def remove(configuration: Configuration, name: str) -> Registered:
    """Removes the entry, not its folder. Raises UserError when there is none of that name."""
    store = _store(configuration)
    with store.locked():
        entries = registered(configuration)
        for entry in entries:
            if entry.name == name:
                store.write(_json([other for other in entries if other is not entry]))
                return entry
    fix = alternatives(name, (entry.name for entry in entries))
    raise UserError(Message("no build called {name} was added; {fix}", name=name, fix=fix))


def check_name(name: str) -> None:
    """Raises UserError for a name that cannot be part of a placement."""
    if not _NAME.fullmatch(name):
        raise UserError(
            "{name!r} is not a valid name of a build: use letters, digits, dot, dash and underscore", name=name
        )


def built_folder(configuration: Configuration, name: str) -> Path:
    """The folder of a build that was compiled here."""
    return configuration.data / "builds" / name


def _store(configuration: Configuration) -> JsonStore[list[Registered]]:
    return JsonStore(path=configuration.data / "builds.json", parse=_parsed, fix="remove it, and add the builds again")


def _parsed(entries: Any) -> list[Registered]:
    return [Registered(name=row["name"], folder=Path(row["folder"]), facts=dict(row["facts"])) for row in entries]


def _json(entries: list[Registered]) -> list[dict[str, Any]]:
    return [asdict(entry) | {"folder": str(entry.folder)} for entry in entries]

"""Folders with builds of engines that the user added or had compiled here, kept in one small file."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.files import JsonStore
from trilithon.settings import Configuration

__all__ = ["Registered", "add", "built_folder", "check_name", "registered", "remove"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # what `@BUILD` can spell


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """`folder` holds a `llama-server` or a `librkllmrt.so`; `name` is what `@BUILD` says; `facts` is what is known
    of how it was made (version, flags, compiler), for people and for results."""

    name: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


def registered(configuration: Configuration) -> list[Registered]:
    """In the order they were added. Raises UserError when the file is damaged."""
    return _store(configuration).read() or []


def add(configuration: Configuration, entry: Registered) -> None:
    """Keep it; an entry of the same folder is replaced. Raises UserError for a name that cannot be spelled, or that
    another folder has."""
    check_name(entry.name)
    store = _store(configuration)
    with store.locked():
        known = [e for e in registered(configuration) if e.folder != entry.folder]
        for other in known:
            if other.name == entry.name:
                raise UserError(
                    f"{entry.name} is already the build in {other.folder}; choose another name with --name, or run: "
                    f"trilithon engines remove {entry.name}"
                )
        store.write(_packed([*known, entry]))


def remove(configuration: Configuration, name: str) -> Registered:
    """Forget it; its folder stays. Raises UserError when there is none of that name."""
    store = _store(configuration)
    with store.locked():
        known = registered(configuration)
        for entry in known:
            if entry.name == name:
                store.write(_packed([e for e in known if e is not entry]))
                return entry
    names = ", ".join(e.name for e in known) or "none"
    raise UserError(f"no build called {name} was added; there are: {names}")


def check_name(name: str) -> None:
    """Raises UserError for one that a placement could not spell."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a build: write letters, digits, dot, dash and underscore")


def built_folder(configuration: Configuration, name: str) -> Path:
    """Where a build that was compiled here lies."""
    return configuration.data / "builds" / name


def _store(configuration: Configuration) -> JsonStore[list[Registered]]:
    return JsonStore(path=configuration.data / "builds.json", parse=_parsed, fix="remove it, and add the builds again")


def _parsed(entries: Any) -> list[Registered]:
    return [Registered(name=e["name"], folder=Path(e["folder"]), facts=dict(e["facts"])) for e in entries]


def _packed(entries: list[Registered]) -> list[dict[str, Any]]:
    return [asdict(e) | {"folder": str(e.folder)} for e in entries]

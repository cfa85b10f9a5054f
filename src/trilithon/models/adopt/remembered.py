"""The list of folders that `trilithon adopt FOLDER` adds."""

import os
from pathlib import Path
from typing import Any

from trilithon.errors import ModelError
from trilithon.files import JsonStore
from trilithon.settings import Configuration

__all__ = ["adopted_folders", "forget_folder", "remember_folder"]


def adopted_folders(configuration: Configuration) -> tuple[Path, ...]:
    """In the order in which they were added. Raises ModelError when the list is damaged."""
    return _store(configuration).read() or ()


def remember_folder(configuration: Configuration, folder: Path) -> bool:
    """Add a folder; returns whether it is new. Raises ModelError for a path that is not a folder, and for the store."""
    folder = folder.expanduser().absolute()
    if not os.path.isdir(folder):  # noqa: PTH112 - never raises
        raise ModelError("{folder} is not a folder; name one that has models", folder=folder)
    store = _store(configuration)
    if folder.resolve().is_relative_to(store.path.parent.resolve()):
        raise ModelError("{folder} is Trilithon's own store; name another folder", folder=folder)
    with store.locked():
        known = store.read() or ()
        if folder in known:
            return False
        store.write([str(path) for path in (*known, folder)])
    return True


def forget_folder(configuration: Configuration, folder: Path) -> None:
    """Remove a folder from the list. Raises ModelError when it is not in the list."""
    folder = folder.expanduser().absolute()
    store = _store(configuration)
    known = store.read() or ()
    if folder in known:
        with store.locked():
            store.write([str(path) for path in store.read() or () if path != folder])
        return
    if folder in configuration.models:
        raise ModelError("{folder} comes from the setting models; remove it there", folder=folder)
    names = ", ".join(map(str, known)) or "none"
    raise ModelError("{folder} was not adopted; adopted folders: {names}", folder=folder, names=names)


def _store(configuration: Configuration) -> JsonStore[tuple[Path, ...]]:
    path = configuration.data / "models" / "adopted.json"
    return JsonStore(
        path=path, parse=_parsed, fix="remove it, and adopt the folders again", error=ModelError, mode=0o644
    )


def _parsed(folders: Any) -> tuple[Path, ...]:
    if not isinstance(folders, list) or not all(isinstance(name, str) and "\0" not in name for name in folders):
        raise ValueError("not a list of folders")
    return tuple(map(Path, folders))

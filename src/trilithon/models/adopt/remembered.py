"""The folders of models that `trilithon adopt FOLDER` remembers, in one small file."""

import os
from pathlib import Path
from typing import Any

from trilithon.errors import ModelError
from trilithon.files import JsonStore
from trilithon.settings import Configuration

__all__ = ["adopted_folders", "forget_folder", "remember_folder"]


def adopted_folders(configuration: Configuration) -> tuple[Path, ...]:
    """In the order they were named. Raises ModelError when the file is damaged."""
    return _store(configuration).read() or ()


def remember_folder(configuration: Configuration, folder: Path) -> bool:
    """Whether it is new. Raises ModelError for what is no folder, and for the store's own."""
    folder = folder.expanduser().absolute()
    if not os.path.isdir(folder):  # noqa: PTH112 - never raises
        raise ModelError(f"{folder} is no folder; name one that holds models")
    store = _store(configuration)
    if folder.resolve().is_relative_to(store.path.parent.resolve()):
        raise ModelError(f"{folder} is Trilithon's own store, which is looked into anyway; name another folder")
    with store.locked():
        known = store.read() or ()
        if folder in known:
            return False
        store.write([str(path) for path in (*known, folder)])
    return True


def forget_folder(configuration: Configuration, folder: Path) -> None:
    """Raises ModelError for one that was not named."""
    folder = folder.expanduser().absolute()
    store = _store(configuration)
    known = store.read() or ()
    if folder in known:
        with store.locked():
            store.write([str(path) for path in store.read() or () if path != folder])
        return
    if folder in configuration.models:
        raise ModelError(f"{folder} comes from the setting models; take it out of there")
    names = ", ".join(map(str, known)) or "none"
    raise ModelError(f"{folder} was not adopted; adopted folders: {names}")


def _store(configuration: Configuration) -> JsonStore[tuple[Path, ...]]:
    path = configuration.data / "models" / "adopted.json"
    return JsonStore(
        path=path, parse=_parsed, fix="remove it, and adopt the folders again", error=ModelError, mode=0o644
    )


def _parsed(folders: Any) -> tuple[Path, ...]:
    if not isinstance(folders, list) or not all(isinstance(name, str) and "\0" not in name for name in folders):
        raise ValueError("it is no list of folders")
    return tuple(map(Path, folders))

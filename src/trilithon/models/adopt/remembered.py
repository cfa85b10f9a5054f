"""The folders of models that `trilithon adopt FOLDER` remembers, in one small file."""

import json
import os
from contextlib import suppress
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.store.locks import lock
from trilithon.models.store.safe_dir import SafeDir, translated
from trilithon.settings import Configuration

__all__ = ["adopted_folders", "forget_folder", "remember_folder"]

_FILE = ("adopted.json",)
_MOST_BYTES = 1 << 20


def adopted_folders(configuration: Configuration) -> tuple[Path, ...]:
    """In the order they were named. Raises ModelError when the file is damaged."""
    rooted = _rooted(configuration)
    with translated(rooted.root), suppress(FileNotFoundError):
        return _read(rooted)
    return ()


def remember_folder(configuration: Configuration, folder: Path) -> bool:
    """Whether it is new. Raises ModelError for what is no folder, and for the store's own."""
    folder = folder.expanduser().absolute()
    if not os.path.isdir(folder):  # noqa: PTH112 - never raises
        raise ModelError(f"{folder} is no folder; name one that holds models")
    own = _rooted(configuration).root
    if folder.resolve().is_relative_to(own.resolve()):
        raise ModelError(f"{folder} is Trilithon's own store, which is looked into anyway; name another folder")
    with translated(own), lock(_rooted(configuration), "adopted"):
        known = adopted_folders(configuration)
        if folder in known:
            return False
        _write(configuration, (*known, folder))
    return True


def forget_folder(configuration: Configuration, folder: Path) -> None:
    """Raises ModelError for one that was not named."""
    folder = folder.expanduser().absolute()
    rooted = _rooted(configuration)
    known = adopted_folders(configuration)
    if folder in known:
        with translated(rooted.root), lock(rooted, "adopted"):
            _write(configuration, tuple(each for each in adopted_folders(configuration) if each != folder))
        return
    if folder in configuration.models:
        raise ModelError(f"{folder} comes from the setting models; take it out of there")
    names = ", ".join(map(str, known)) or "none"
    raise ModelError(f"{folder} was not adopted; adopted folders: {names}")


def _rooted(configuration: Configuration) -> SafeDir:
    return SafeDir(configuration.data / "models")


def _read(rooted: SafeDir) -> tuple[Path, ...]:
    try:
        folders = json.loads(rooted.read(_FILE, _MOST_BYTES))
    except (ValueError, RecursionError):
        folders = None
    if not isinstance(folders, list) or not all(isinstance(each, str) and "\0" not in each for each in folders):
        raise ModelError(f"{rooted.path(_FILE)} is damaged; remove it, and adopt the folders again")
    return tuple(map(Path, folders))


def _write(configuration: Configuration, folders: tuple[Path, ...]) -> None:
    _rooted(configuration).write(_FILE, json.dumps([str(each) for each in folders], indent=1).encode())

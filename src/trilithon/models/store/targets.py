"""One repository pulled for several chips is one model, which holds a file for each: none replaces the other's."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import PurePosixPath

from trilithon.models.store.manifest import Manifest, StoredFile

__all__ = ["with_other_targets"]

_TEXTS = ("tokenizer", "template")
_ANYWHERE = "anywhere"


def with_other_targets(new: Manifest, before: Manifest) -> Manifest:
    """`new`, and behind its files those that `before` has of the same source for what `new` has no file for: another
    chip, or a GGUF beside files for chips. Tokenizer and template stay with those where `new` brings none."""
    if _origin(new) != _origin(before):
        return new
    left = _targets(before) - _targets(new)
    kept = [file for file in before.files if _target(file) in left]
    if any(file.target_platform for file in kept) and not any(file.role in _TEXTS for file in new.files):
        kept += [file for file in before.files if file.role in _TEXTS]
    files = list(new.files)
    for file in kept:
        files.append(replace(file, name=_own_name(file, {each.name.casefold() for each in files})))
    return replace(new, files=tuple(files))


def _origin(manifest: Manifest) -> str:
    """Without the revision, which is behind " at "."""
    return manifest.source.partition(" at ")[0].casefold()


def _targets(manifest: Manifest) -> set[str]:
    return {target for file in manifest.of_role("weights") if (target := _target(file))}


def _target(file: StoredFile) -> str:
    """The chip that it is for; empty for what belongs to others, and where nobody knows."""
    return file.target_platform or (_ANYWHERE if file.format == "gguf" else "")


def _own_name(file: StoredFile, taken: Collection[str]) -> str:
    """Folders of a repository that are named by chips may hold files of one name."""
    if file.name.casefold() not in taken:
        return file.name
    path = PurePosixPath(file.name)
    named = f"{path.stem}-{file.target_platform.lower() or 'other'}"
    number, name = 1, f"{named}{path.suffix}"
    while name.casefold() in taken:
        number += 1
        name = f"{named}-{number}{path.suffix}"
    return name

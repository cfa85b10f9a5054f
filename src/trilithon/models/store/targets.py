"""A repository that is pulled for several chips is one model with a file for each: a pull keeps the others."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import PurePosixPath

from trilithon.models.store.manifest import Manifest, StoredFile

__all__ = ["with_other_targets"]

_TEXTS = ("tokenizer", "template")
_ANYWHERE = "anywhere"


def with_other_targets(new: Manifest, before: Manifest) -> Manifest:
    """`new` with the files of `before` for other targets: another chip, or a GGUF beside files for chips. Both have to
    come from the same source. Tokenizer and template of `before` are kept when `new` has none."""
    if _origin(new) != _origin(before):
        return new
    missing_targets = _targets(before) - _targets(new)
    kept = [file for file in before.files if _target(file) in missing_targets]
    if any(file.target_platform for file in kept) and not any(file.role in _TEXTS for file in new.files):
        kept += [file for file in before.files if file.role in _TEXTS]
    files = list(new.files)
    for file in kept:
        files.append(replace(file, name=_unused_name(file, {other.name.casefold() for other in files})))
    return replace(new, files=tuple(files))


def _origin(manifest: Manifest) -> str:
    """The source without the revision, which follows " at "."""
    return manifest.source.partition(" at ")[0].casefold()


def _targets(manifest: Manifest) -> set[str]:
    return {target for file in manifest.of_role("weights") if (target := _target(file))}


def _target(file: StoredFile) -> str:
    """The chip that a file is for; empty for files that belong to others, and when it is unknown."""
    return file.target_platform or (_ANYWHERE if file.format == "gguf" else "")


def _unused_name(file: StoredFile, taken: Collection[str]) -> str:
    """A file name that is not taken: folders of a repository that are named by chips may have files of one name."""
    if file.name.casefold() not in taken:
        return file.name
    path = PurePosixPath(file.name)
    base = f"{path.stem}-{file.target_platform.lower() or 'other'}"
    number, name = 1, f"{base}{path.suffix}"
    while name.casefold() in taken:
        number += 1
        name = f"{base}-{number}{path.suffix}"
    return name

"""Verify that every file has its digest, and remove what is not used any more."""

import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.files import TEMPORARY
from trilithon.models.files.hashing import Progress
from trilithon.models.names import ModelName
from trilithon.models.store import manifests as manifest_files
from trilithon.models.store.locks import lock, lock_names, try_lock
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.manifests import Listing
from trilithon.models.store.model_store import LINKS_FOLDER, ModelStore
from trilithon.models.store.partial import PARTIAL_FOLDER, STEM, blob_parts, hash_descriptor
from trilithon.models.store.safe_dir import SafeDir, translated

__all__ = ["STALE_SECONDS", "Damage", "Pruned", "prune", "remove_damaged", "verify"]

STALE_SECONDS = 24 * 3600.0
"""A download that was stopped longer ago than this is unlikely to be resumed."""

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file that differs from its manifest, and the models that use it. `removable`: it is a blob of this store, so it
    can be removed and pulled again; `inode` tells it from a blob that replaced it."""

    models: tuple[str, ...]
    file: str
    digest: str
    problem: str
    removable: bool = False
    inode: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `prune` removed, or would remove: numbers of files, and their size. `kept` says why others stay."""

    blobs: int = 0
    partials: int = 0
    freed_bytes: int = 0
    kept: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Check:
    """A file to verify, and the models that use it."""

    file: StoredFile
    models: tuple[str, ...]


def verify(store: ModelStore, names: Collection[ModelName] = (), progress: Progress | None = None) -> list[Damage]:
    """Read every file of the named models and compare it with its digest. Without names: of all models, and the blobs
    that no model uses. Raises ModelError for an unknown name."""
    listing = Listing(tuple(store.get(name) for name in names), (), ()) if names else store.listing()
    manifests = listing.manifests
    damages = [Damage(models=(), file="", digest="", problem=problem) for problem in listing.problems]
    checks = _checks(manifests) + ([] if names else _orphans(store, manifests))
    total = sum(check.file.size_bytes for check in checks)
    done = 0
    for check in checks:
        damage = _verify_file(store, check, _offset(progress, done, total))
        damages += [] if damage is None else [damage]
        done += check.file.size_bytes
    return damages


def remove_damaged(store: ModelStore, damages: Sequence[Damage]) -> int:
    """Remove the damaged blobs, unless they were replaced meanwhile, and return their number."""
    removed = 0
    with translated(store.local.root), lock(store.local, "store"):
        for damage in damages:
            if not damage.removable:
                continue
            with suppress(FileNotFoundError):
                if store.local.status(blob_parts(damage.digest)).st_ino == damage.inode:
                    removed += not store.remove_blobs([damage.digest]).kept
    return removed


def prune(store: ModelStore, *, dry_run: bool = False, stale_seconds: float = STALE_SECONDS) -> Pruned:
    """Remove blobs that no manifest uses, stopped downloads, and what killed processes left.

    Nothing is removed that a process works on. No blob is removed while a manifest cannot be read: it may use any.
    Raises ModelError where a folder or manifest of the store is a link, or its manifests are missing."""
    safe_dir = store.local
    with translated(safe_dir.root):
        if not safe_dir.root.is_dir():
            return Pruned()
        if dry_run:
            return _prune(store, stale_seconds, dry_run=True)
        with lock(safe_dir, "store"):
            return _prune(store, stale_seconds, dry_run=False)


def _prune(store: ModelStore, stale_seconds: float, *, dry_run: bool) -> Pruned:
    safe_dir = store.local
    listing = manifest_files.listing((safe_dir,))
    if listing.broken:
        raise ModelError("nothing was removed: {reason}", reason=listing.broken[0])
    partials, partial_bytes = _prune_partials(safe_dir, stale_seconds, dry_run=dry_run)
    if not dry_run and not listing.problems:
        _remove_leftovers(safe_dir, {manifest.name.parts for manifest in listing.manifests})
    if listing.problems:
        why = f"blobs are kept until this is fixed: {listing.problems[0]}"
        return Pruned(partials=partials, freed_bytes=partial_bytes, kept=(why,))
    unused = {digest: size for digest, size in _blobs(safe_dir).items() if digest not in listing.digests}
    if dry_run:
        return Pruned(blobs=len(unused), partials=partials, freed_bytes=partial_bytes + sum(unused.values()))
    removal = store.remove_blobs(tuple(unused))
    return Pruned(
        blobs=len(unused) - len(removal.kept),
        partials=partials,
        freed_bytes=partial_bytes + removal.freed_bytes,
        kept=removal.kept,
    )


def _prune_partials(safe_dir: SafeDir, stale_seconds: float, *, dry_run: bool) -> tuple[int, int]:
    """Remove partial files that no process writes to; of those that can be resumed, only the stale ones. Returns their
    number and their size in bytes."""
    count = freed = 0
    files = safe_dir.sizes((PARTIAL_FOLDER,))
    for stem in filter(STEM.fullmatch, {name.removeprefix(TEMPORARY).rpartition(".")[0] for name in files}):
        names = (f"{stem}.data", f"{stem}.json", f"{TEMPORARY}{stem}.json")
        present = {name: files[name] for name in names if name in files}
        if not present:
            continue
        recent = time.time() - max(status.st_mtime for status in present.values()) < stale_seconds
        if recent and not stem.startswith("new-"):
            continue
        lock_ = try_lock(safe_dir, f"receive-{stem}")
        if lock_ is None:
            continue
        if not dry_run:
            for name in present:
                with suppress(FileNotFoundError):
                    safe_dir.unlink((PARTIAL_FOLDER, name))
        lock_.release()
        count += 1
        freed += sum(status.st_blocks * 512 for status in present.values())
    return count, freed


def _remove_leftovers(safe_dir: SafeDir, known: Collection[tuple[str, ...]]) -> None:
    """Remove locks that no process holds, files that killed writers left, and links of models that are gone. Links
    into a layer or another program's folder stay while their target exists."""
    for name in lock_names(safe_dir):
        if name != "store" and (unused := try_lock(safe_dir, name)) is not None:
            unused.release()
    for top in ("manifests", LINKS_FOLDER):
        for parts in _folders(safe_dir, (top,), 4 if top == "manifests" else 6):
            safe_dir.remove_temporary(parts)
            if len(parts) == 6 and parts[1:5] not in known and not _has_outside_targets(safe_dir, parts):
                safe_dir.remove_entries(parts)
            safe_dir.remove_empty(parts)


def _has_outside_targets(safe_dir: SafeDir, parts: tuple[str, ...]) -> bool:
    targets = [Path(target) for name in safe_dir.names(parts) if (target := safe_dir.target((*parts, name)))]
    return any(not target.is_relative_to(safe_dir.root) and os.path.lexists(target) for target in targets)


def _folders(safe_dir: SafeDir, parts: tuple[str, ...], depth: int) -> list[tuple[str, ...]]:
    """The folder and its subfolders, the deepest first, down to paths of `depth` parts."""
    if len(parts) == depth:
        return [parts]
    folders = []
    for name in safe_dir.names(parts):
        folders += _folders(safe_dir, (*parts, name), depth)
    return [*folders, parts]


def _blobs(safe_dir: SafeDir) -> dict[str, int]:
    """Digest → size in bytes, by digest. Other files in the folder are not Trilithon's."""
    sizes = safe_dir.sizes(("blobs",))
    return {match[1]: status.st_size for name, status in sizes.items() if (match := _BLOB.fullmatch(name))}


def _checks(manifests: Sequence[Manifest]) -> list[_Check]:
    """A check for every file; a file that several models use is checked once."""
    users: dict[str, list[str]] = {}
    files: dict[str, StoredFile] = {}
    for manifest in manifests:
        for file in manifest.files:
            key = str(file.path or file.digest)
            files[key] = file
            users.setdefault(key, []).append(str(manifest.name))
    return [_Check(file, tuple(dict.fromkeys(users[key]))) for key, file in files.items()]


def _orphans(store: ModelStore, manifests: Sequence[Manifest]) -> list[_Check]:
    used = {file.digest for manifest in manifests for file in manifest.files}
    return [
        _Check(StoredFile(role="weights", digest=digest, size_bytes=size, name=f"sha256-{digest}", format="text"), ())
        for digest, size in _blobs(store.local).items()
        if digest not in used
    ]


def _verify_file(store: ModelStore, check: _Check, progress: Progress | None) -> Damage | None:
    file = check.file
    safe_dir = store.where(file.digest) if file.path is None else None
    problem, inode = "", 0
    try:
        if file.path is not None:
            descriptor = os.open(file.path, os.O_RDONLY)
        elif safe_dir is not None:
            descriptor = safe_dir.open(blob_parts(file.digest))
        else:
            raise FileNotFoundError
        try:
            status = os.fstat(descriptor)
            inode = status.st_ino
            if status.st_size != file.size_bytes:
                problem = f"has {status.st_size} bytes and should have {file.size_bytes}"
            elif file.digest and (digest := hash_descriptor(descriptor, progress)) != file.digest:
                problem = f"is damaged: its SHA-256 is {digest[:12]}…"
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        problem = "is missing"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if not problem:
        return None
    removable = safe_dir is store.local and problem != "is missing"
    return Damage(
        models=check.models, file=file.name, digest=file.digest, problem=problem, removable=removable, inode=inode
    )


def _offset(progress: Progress | None, before: int, total: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, total)

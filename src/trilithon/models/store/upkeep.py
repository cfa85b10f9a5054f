"""The store looked after: every byte compared with its digest, and what nobody uses any more removed."""

import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trilithon.files import TEMPORARY
from trilithon.models.files.hashing import Progress
from trilithon.models.names import ModelName
from trilithon.models.store import manifests as catalogue
from trilithon.models.store.locks import lock, lock_names, try_lock
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.manifests import Listing
from trilithon.models.store.model_store import LINKS_FOLDER, ModelStore
from trilithon.models.store.partial import PARTIAL_FOLDER, STEM, blob_parts, hash_descriptor
from trilithon.models.store.safe_dir import SafeDir, translated

__all__ = ["STALE_SECONDS", "Damage", "Pruned", "prune", "remove_damaged", "verify"]

STALE_SECONDS = 24 * 3600.0
"""A download that was stopped longer ago than this will hardly be gone on with."""

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One file that is not what its manifest says, and the models that suffer. `removable`: it is a blob of the store
    itself, so that it can be removed and pulled again; `inode` tells it from the one that takes its place."""

    models: tuple[str, ...]
    file: str
    digest: str
    problem: str
    removable: bool = False
    inode: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `prune` removed, or would remove: numbers of files, and their bytes. `kept` says why others stayed."""

    blobs: int = 0
    partials: int = 0
    freed_bytes: int = 0
    kept: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One file to look at, and who uses it."""

    file: StoredFile
    models: tuple[str, ...]


def verify(store: ModelStore, names: Collection[ModelName] = (), progress: Progress | None = None) -> list[Damage]:
    """Read every file of the named models (of all, with blobs that no model uses) and hold it against its digest."""
    listing = Listing(tuple(store.get(name) for name in names), (), ()) if names else store.listing()
    manifests = listing.manifests
    found = [Damage(models=(), file="", digest="", problem=problem) for problem in listing.problems]
    wanted = _wanted(manifests) + ([] if names else _orphans(store, manifests))
    total = sum(each.file.size_bytes for each in wanted)
    before = 0
    for each in wanted:
        damage = _look_at(store, each, _offset(progress, before, total))
        found += [] if damage is None else [damage]
        before += each.file.size_bytes
    return found


def remove_damaged(store: ModelStore, damages: Sequence[Damage]) -> int:
    """Remove those blobs that are still the damaged ones, so that the next pull fetches them; gives how many went."""
    removed = 0
    with translated(store.own.root), lock(store.own, "store"):
        for damage in damages:
            if not damage.removable:
                continue
            with suppress(FileNotFoundError):
                if store.own.status(blob_parts(damage.digest)).st_ino == damage.inode:
                    removed += not store.remove_blobs([damage.digest]).kept
    return removed


def prune(store: ModelStore, *, dry_run: bool = False, stale_seconds: float = STALE_SECONDS) -> Pruned:
    """Remove blobs that no manifest uses, downloads that were stopped, and what killed processes left behind.

    Nothing goes that a process works on. While a manifest cannot be read no blob goes, for it may name any.
    """
    own = store.own
    with translated(own.root):
        if not own.root.is_dir():
            return Pruned()
        if dry_run:
            return _prune(store, stale_seconds, dry_run=True)
        with lock(own, "store"):
            return _prune(store, stale_seconds, dry_run=False)


def _prune(store: ModelStore, stale_seconds: float, *, dry_run: bool) -> Pruned:
    own = store.own
    listing = catalogue.listing((own,))
    partials, partial_bytes = _prune_partials(own, stale_seconds, dry_run=dry_run)
    if not dry_run:
        _sweep(own, {manifest.name.parts for manifest in listing.manifests})
    if listing.problems:
        why = f"blobs stay until this is fixed: {listing.problems[0]}"
        return Pruned(partials=partials, freed_bytes=partial_bytes, kept=(why,))
    unused = {digest: size for digest, size in _blobs(own).items() if digest not in listing.digests}
    if dry_run:
        return Pruned(blobs=len(unused), partials=partials, freed_bytes=partial_bytes + sum(unused.values()))
    removal = store.remove_blobs(sorted(unused))
    return Pruned(
        blobs=len(unused) - len(removal.kept),
        partials=partials,
        freed_bytes=partial_bytes + removal.freed_bytes,
        kept=removal.kept,
    )


def _prune_partials(own: SafeDir, stale_seconds: float, *, dry_run: bool) -> tuple[int, int]:
    """Those that nobody writes to; of those that could be gone on with, only the stale ones."""
    count = freed = 0
    files = own.sizes((PARTIAL_FOLDER,))
    for stem in sorted(filter(STEM.fullmatch, {name.removeprefix(TEMPORARY).rpartition(".")[0] for name in files})):
        names = (f"{stem}.data", f"{stem}.json", f"{TEMPORARY}{stem}.json")
        mine = {name: files[name] for name in names if name in files}
        if not mine:
            continue
        fresh = time.time() - max(status.st_mtime for status in mine.values()) < stale_seconds
        if fresh and not stem.startswith("new-"):
            continue
        held = try_lock(own, f"receive-{stem}")
        if held is None:
            continue
        if not dry_run:
            for name in mine:
                with suppress(FileNotFoundError):
                    own.unlink((PARTIAL_FOLDER, name))
        held.release()
        count += 1
        freed += sum(status.st_blocks * 512 for status in mine.values())
    return count, freed


def _sweep(own: SafeDir, known: Collection[tuple[str, ...]]) -> None:
    """Locks that nobody holds, files that killed writers left, links of models that are gone. Links to what lies
    elsewhere, in a layer or with another program, stay as long as it is there."""
    for name in lock_names(own):
        if name != "store" and (held := try_lock(own, name)) is not None:
            held.release()
    for top in ("manifests", LINKS_FOLDER):
        for parts in _folders(own, (top,), 4 if top == "manifests" else 6):
            own.remove_temporary(parts)
            if len(parts) == 6 and parts[1:5] not in known and not _leads_elsewhere(own, parts):
                own.remove_entries(parts)
            own.remove_empty(parts)


def _leads_elsewhere(own: SafeDir, parts: tuple[str, ...]) -> bool:
    targets = [Path(target) for name in own.names(parts) if (target := own.target((*parts, name)))]
    return any(not target.is_relative_to(own.root) and os.path.lexists(target) for target in targets)


def _folders(own: SafeDir, parts: tuple[str, ...], depth: int) -> list[tuple[str, ...]]:
    """Those below, the deepest first, down to paths of `depth` parts."""
    if len(parts) == depth:
        return [parts]
    found = []
    for name in own.names(parts):
        found += _folders(own, (*parts, name), depth)
    return [*found, parts]


def _blobs(own: SafeDir) -> dict[str, int]:
    """Digest → bytes; anything else in the folder is not ours."""
    sizes = own.sizes(("blobs",))
    return {match[1]: status.st_size for name, status in sizes.items() if (match := _BLOB.fullmatch(name))}


def _wanted(manifests: Sequence[Manifest]) -> list[_Wanted]:
    """Each file once, however many models use it."""
    users: dict[str, list[str]] = {}
    files: dict[str, StoredFile] = {}
    for manifest in manifests:
        for file in manifest.files:
            key = str(file.path or file.digest)
            files[key] = file
            users.setdefault(key, []).append(str(manifest.name))
    return [_Wanted(file, tuple(dict.fromkeys(users[key]))) for key, file in files.items()]


def _orphans(store: ModelStore, manifests: Sequence[Manifest]) -> list[_Wanted]:
    used = {file.digest for manifest in manifests for file in manifest.files}
    return [
        _Wanted(StoredFile(role="weights", digest=digest, size_bytes=size, name=f"sha256-{digest}", format="text"), ())
        for digest, size in sorted(_blobs(store.own).items())
        if digest not in used
    ]


def _look_at(store: ModelStore, wanted: _Wanted, progress: Progress | None) -> Damage | None:
    file = wanted.file
    rooted = store.where(file.digest) if file.path is None else None
    problem, inode = "", 0
    try:
        if file.path is not None:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        elif rooted is not None:
            descriptor = rooted.open(blob_parts(file.digest))
        else:
            raise FileNotFoundError
        try:
            status = os.fstat(descriptor)
            inode = status.st_ino
            if status.st_size != file.size_bytes:
                problem = f"has {status.st_size} bytes and should have {file.size_bytes}"
            elif file.digest and (found := hash_descriptor(descriptor, progress)) != file.digest:
                problem = f"is damaged: its SHA-256 is {found[:12]}…"
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        problem = "is missing"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if not problem:
        return None
    removable = rooted is store.own and problem != "is missing"
    return Damage(
        models=wanted.models, file=file.name, digest=file.digest, problem=problem, removable=removable, inode=inode
    )


def _offset(progress: Progress | None, before: int, total: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, total)

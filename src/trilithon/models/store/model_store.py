"""Models on disk: blobs named by their SHA-256, and a small manifest for each name.

A blob gets its name when it is complete and on the disk; a manifest is replaced in one step. Removals happen under the
store's lock, and spare blobs that another process is about to use. Layered stores are only read."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from trilithon.errors import ModelError, NoSuchModel
from trilithon.language import Message, listed
from trilithon.models.files.hashing import Progress, remember_sha256
from trilithon.models.names import ModelName, similar_models
from trilithon.models.store import manifests as manifest_files
from trilithon.models.store.locks import Lock, lock, try_lock, wait_for_lock
from trilithon.models.store.manifest import Manifest, StoredFile, require_digest
from trilithon.models.store.manifests import Listing
from trilithon.models.store.partial import Partial, blob_parts
from trilithon.models.store.safe_dir import SafeDir, translated
from trilithon.models.store.space import remaining_bytes, require_room
from trilithon.settings import Configuration

__all__ = ["LINKS_FOLDER", "Merge", "ModelStore", "OnWait", "Removal"]

OnWait = Callable[[], None]
"""Called again and again while another process holds a lock; it may raise to give up."""
Merge = Callable[[Manifest, Manifest], Manifest]
"""Makes one manifest of a new one and the one that had its name, without its missing files."""

LINKS_FOLDER = "links"
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Removal:
    """The result of removing blobs: `freed_bytes`, and why others were kept, one line each."""

    freed_bytes: int
    kept: tuple[str, ...] = ()


class ModelStore:
    """The store of this machine's user, on top of read-only layers. Every method raises ModelError for disk errors.

    Blobs that an instance received, or had under `locked`, cannot be removed by other processes until `put` names them
    in a manifest, or until `close` (or the end of the process). So use one instance for one pull."""

    def __init__(self, root: Path, layers: Sequence[Path] = (), cache: Path | None = None):
        self.local = SafeDir(root)
        self.layers = tuple(SafeDir(layer) for layer in layers if layer != root)
        self._cache = cache
        self._blob_locks: dict[str, Lock] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, configuration: Configuration) -> Self:
        """Nothing is written before there is something to store."""
        return cls(configuration.data / "models", configuration.stores, configuration.cache)

    def close(self) -> None:
        while self._blob_locks:
            self._blob_locks.popitem()[1].release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # Blobs

    def has(self, digest: str) -> bool:
        return self.where(digest) is not None

    def where(self, digest: str) -> SafeDir | None:
        """The store that has the blob: this one, or the first layer that has it; None when none has it."""
        location = self._find(digest)
        return location[0] if location else None

    def blob_path(self, digest: str) -> Path:
        """A plain file named by its digest, without a suffix. Raises ModelError when no store has it."""
        where = self.where(digest)
        if where is None:
            raise ModelError("the file sha256:{digest}… is not in the store; pull its model again", digest=digest[:12])
        return where.path(blob_parts(digest))

    def file_path(self, file: StoredFile) -> Path:
        """The path of a model's file, in the store or in the folder of the program that it was adopted from."""
        if file.path is None:
            return self.blob_path(file.digest)
        if not _is_file(file.path):
            raise ModelError(
                "{path} ({name}) is missing; restore it, or remove the model", path=file.path, name=file.name
            )
        return file.path

    @contextmanager
    def locked(self, digest: str, on_wait: OnWait | None = None) -> Iterator[None]:
        """Exclusive access to a blob. Afterwards it cannot be removed before this instance's `put` or `close`."""
        require_digest(digest)
        lock = wait_for_lock(self.local, f"pull-{digest}", on_wait)
        try:
            self._protect(digest)
            yield
        finally:
            lock.release()

    @contextmanager
    def receive(
        self, digest: str | None = None, size_bytes: int | None = None, *, key: str = "", on_wait: OnWait | None = None
    ) -> Iterator[Partial]:
        """A file to fill and `finish`. A second process waits here, and then gets the blob as `present`.

        Without a digest, `key` (a URL and its version) identifies the file, so that it can be resumed; without either,
        an unfinished file is dropped. Raises ModelError, and NoRoom when the disk has no room for it."""
        stem = _stem(digest, key)
        with ExitStack() as stack:
            with translated(self.local.root):
                manifest_files.require_structure(self.local)
            stack.callback(wait_for_lock(self.local, f"receive-{stem}", on_wait).release)
            if digest is not None:
                self._protect(digest)
            present = digest is not None and self._is_complete(digest, size_bytes)
            with translated(self.local.root):
                partial = Partial(
                    self.local,
                    stem,
                    digest=digest,
                    size_bytes=size_bytes,
                    present=present,
                    on_complete=self._on_complete,
                )
            stack.callback(partial.close if digest or key else partial.discard)
            if size_bytes is not None and not present:
                with translated(self.local.root):
                    require_room(self.local, remaining_bytes(self.local, stem, size_bytes), counted=(stem,))
            yield partial

    def add(self, path: Path, progress: Progress | None = None) -> str:
        """Copy a file of this machine into the store, and return its digest."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                with self.receive(None, size) as partial:
                    while chunk := file.read(_CHUNK_BYTES):
                        partial.append(chunk)
                        if progress is not None:
                            progress(partial.bytes_done, size)
                    return partial.finish()
        except OSError as error:
            raise ModelError(
                "{path} cannot be read: {reason}; check its name and permissions", path=path, reason=error.strerror
            ) from error

    def add_bytes(self, content: bytes) -> str:
        """Store a small file, and return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        with self.receive(digest, len(content)) as partial:
            if not partial.present:
                partial.restart()
                partial.append(content)
            return partial.finish()

    def room_for_all(self, sizes: Mapping[str, int]) -> None:
        """Check that files fit, given by digest and size. What the store has of them already, or another process is
        writing, needs no space. Raises NoRoom."""
        with translated(self.local.root):
            stems = {_stem(digest, ""): size for digest, size in sizes.items() if not self.has(digest)}
            lacking = sum(remaining_bytes(self.local, stem, size) for stem, size in stems.items())
            require_room(self.local, lacking, counted=stems)

    def room_for(self, size_bytes: int) -> None:
        """Raises NoRoom when `size_bytes` more do not fit, less what other processes still have to write."""
        with translated(self.local.root):
            require_room(self.local, size_bytes)

    # Manifests

    def list(self) -> tuple[Manifest, ...]:
        """Every model that can be read, by name. A name counts in this store first, then in the first layer."""
        return self.listing().manifests

    def listing(self) -> Listing:
        """`list`, with the roots of the stores and the manifests that cannot be read."""
        with translated(self.local.root):
            return manifest_files.listing((self.local, *self.layers))

    def get(self, name: ModelName) -> Manifest:
        """Raises ModelError when there is no such model, with similar names."""
        for safe_dir in (self.local, *self.layers):
            with translated(safe_dir.root):
                manifest = manifest_files.read(safe_dir, name)
            if manifest is not None:
                return manifest
        raise self._unknown(name)

    def is_local(self, name: ModelName) -> bool:
        """Whether the model is in this store, and not only in a layer."""
        return self.root_of(name) == self.local.root

    def root_of(self, name: ModelName) -> Path | None:
        """The root of the store that has the model: this one, or the first layer that has it; None when none has it."""
        for safe_dir in (self.local, *self.layers):
            with translated(safe_dir.root):
                if manifest_files.exists(safe_dir, name):
                    return safe_dir.root
        return None

    def missing(self, manifest: Manifest) -> tuple[StoredFile, ...]:
        """The files of a model that are missing or have the wrong size."""
        return tuple(file for file in manifest.files if self._size_of(file) != file.size_bytes)

    def put(self, manifest: Manifest, *, new: bool = False, merge: Merge | None = None) -> Manifest:
        """Store a manifest under its name, replacing an existing one; blobs that only that one used are removed.

        Returns the stored manifest: a name that differs from an existing one by case alone takes that one's case, and
        `merge` combines it with the one that it replaces. Raises ModelError when a file is not in the store, and with
        `new` when the name is taken."""
        with translated(self.local.root), lock(self.local, "store"):
            manifest_files.require_structure(self.local)
            if new and manifest_files.exists(self.local, manifest.name):
                raise ModelError("{name} exists already; remove it first: trilithon rm {name}", name=manifest.name)
            if missing := self.missing(manifest):
                raise ModelError(
                    "{name} of {model} is missing or incomplete; pull it again",
                    name=missing[0].name,
                    model=manifest.name,
                )
            name = manifest_files.stored_name(self.local, replace(manifest.name, digest=""))
            before = self._readable(name)
            manifest = replace(manifest, name=name)
            if before is not None and merge is not None:
                missing = self.missing(before)
                present = tuple(file for file in before.files if file not in missing)
                manifest = merge(manifest, replace(before, files=present))
            manifest_files.write(self.local, manifest)
            if before is not None:
                self._remove_unused(before)
        for file in manifest.files:
            if lock_ := self._blob_locks.pop(file.digest, None):
                lock_.release()
        return manifest

    def copy(self, source: ModelName, target: ModelName) -> Manifest:
        """The same files under another name. Raises ModelError when the name is taken."""
        return self.put(replace(self.get(source), name=target), new=True)

    def remove(self, name: ModelName) -> Removal:
        """Remove a model and the blobs that no other manifest uses. A blob that is being pulled is kept. Raises
        ModelError where there is no such model, and as `prune` does."""
        with translated(self.local.root), lock(self.local, "store"):
            if broken := manifest_files.listing((self.local,)).broken:
                raise ModelError("nothing was removed: {reason}", reason=broken[0])
            if not manifest_files.exists(self.local, name):
                raise self._not_removable(name)
            manifest = self._readable(name)
            self._remove_links(name)
            manifest_files.remove(self.local, name)
            if manifest is None:
                return Removal(0, ("its manifest could not be read; free its files with: trilithon prune",))
            return self._remove_unused(manifest)

    # These need the store's lock

    def _remove_unused(self, manifest: Manifest) -> Removal:
        """Remove those of its blobs that no manifest uses any more."""
        listing = manifest_files.listing((self.local,))
        if listing.problems:
            return Removal(0, (f"its files stay until this is fixed: {listing.problems[0]}",))
        unused = {file.digest for file in manifest.files if file.path is None} - listing.digests
        return self.remove_blobs(sorted(unused))

    def remove_blobs(self, digests: Sequence[str]) -> Removal:
        """Remove blobs, except for those that a process holds. The caller has the store's lock, and has checked that no
        manifest uses them."""
        freed, kept = 0, []
        for digest in digests:
            blob_lock = try_lock(self.local, f"hold-{digest}")
            if blob_lock is None:
                kept.append(f"sha256:{digest[:12]}… is kept: it is being pulled")
                continue
            with suppress(FileNotFoundError):
                size = self.local.status(blob_parts(digest)).st_size
                self.local.unlink(blob_parts(digest))
                freed += size
            blob_lock.release()
        return Removal(freed, tuple(kept))

    def _remove_links(self, name: ModelName) -> None:
        folder = (LINKS_FOLDER, *manifest_files.parts_of(self.local, name))
        for entry in self.local.names(folder):
            self.local.remove_entries((*folder, entry))
            self.local.remove_empty((*folder, entry))

    # Helpers

    def _size_of(self, file: StoredFile) -> int | None:
        if file.path is not None:
            return file.path.stat().st_size if _is_file(file.path) else None
        location = self._find(file.digest)
        return location[1].st_size if location else None

    def _find(self, digest: str) -> tuple[SafeDir, os.stat_result] | None:
        for safe_dir in (self.local, *self.layers):
            with translated(safe_dir.root), suppress(FileNotFoundError):
                return safe_dir, safe_dir.status(blob_parts(digest))
        return None

    def _is_complete(self, digest: str, size_bytes: int | None) -> bool:
        """Whether a blob has its full size. A truncated one is received again and replaced."""
        location = self._find(digest)
        return location is not None and size_bytes in (None, location[1].st_size)

    def _protect(self, digest: str) -> None:
        with self._lock:
            if digest not in self._blob_locks:
                self._blob_locks[digest] = wait_for_lock(self.local, f"hold-{digest}", None, shared=True)

    def _on_complete(self, digest: str, status: os.stat_result) -> None:
        """Before a blob gets its name: protect it from removal, and remember its digest."""
        self._protect(digest)
        if self._cache is not None:
            remember_sha256(self._cache, status, digest)

    def _readable(self, name: ModelName) -> Manifest | None:
        try:
            return manifest_files.read(self.local, name)
        except ModelError:  # damaged, or of a newer Trilithon: `listing` reports it
            return None

    def _unknown(self, name: ModelName) -> ModelError:
        listing = self.listing()
        similar = similar_models(name, [model.name for model in listing.manifests])
        if listing.problems:
            return ModelError(
                "there is no {name} in the store, as far as it can be read: {problem}",
                name=name,
                problem=listing.problems[0],
            )
        if similar:
            names = listed(similar)
            return NoSuchModel(
                Message(
                    "there is no {name} in the store; did you mean {names}? Or fetch it: trilithon pull {name}",
                    name=name,
                    names=names,
                )
            )
        return NoSuchModel(
            "there is no {name} in the store; see trilithon list, or fetch it: trilithon pull {name}", name=name
        )

    def _not_removable(self, name: ModelName) -> ModelError:
        for layer in self.layers:
            if manifest_files.exists(layer, name):
                return ModelError(
                    "{name} is in {root}, which is read only; remove it there, or change the setting stores",
                    name=name,
                    root=layer.root,
                )
        return self._unknown(name)


def _stem(digest: str | None, key: str) -> str:
    if digest is not None:
        require_digest(digest)
        return f"sha256-{digest}"
    return f"key-{hashlib.sha256(key.encode()).hexdigest()}" if key else f"new-{os.getpid()}-{os.urandom(8).hex()}"


def _is_file(path: Path) -> bool:
    """False also when this user cannot look into its folder."""
    try:
        return path.is_file()
    except OSError:
        return False

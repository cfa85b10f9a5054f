"""Models on disk: blobs named by their SHA-256, and a small manifest for each name.

A blob gets its name only when it is whole and on the disk; a manifest is replaced in one step. Every removal happens
under the store's lock, and spares what another process is about to use. Layered stores are read, never written.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from trilithon.errors import ModelError
from trilithon.models.files.hashing import Progress, remember_sha256
from trilithon.models.names import ModelName
from trilithon.models.store import manifests as catalogue
from trilithon.models.store.locks import Lock, lock, try_lock, waited_lock
from trilithon.models.store.manifest import Manifest, StoredFile, require_digest
from trilithon.models.store.manifests import Listing
from trilithon.models.store.partial import Partial, blob_parts
from trilithon.models.store.safe_dir import SafeDir, translated
from trilithon.models.store.space import lacking_bytes, require_room
from trilithon.settings import Configuration

__all__ = ["LINKS_FOLDER", "Merge", "ModelStore", "Removal", "Waiting"]

Waiting = Callable[[], None]
"""Called again and again while another process has what is waited for; it may raise to give up."""
Merge = Callable[[Manifest, Manifest], Manifest]
"""What becomes of a new manifest and the one that had its name, less those of its files that are gone."""

LINKS_FOLDER = "links"
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a model's blobs: `freed_bytes`, and why others stayed, one line each."""

    freed_bytes: int
    kept: tuple[str, ...] = ()


class ModelStore:
    """Every method raises ModelError, in one line, for what goes wrong on disk.

    What an instance received, or looked at under `locked`, is safe from removal until `put` names it in a manifest,
    or until `close` (at the latest when the process ends, however it ends): take one instance for one pull.
    """

    def __init__(self, root: Path, layers: Sequence[Path] = (), cache: Path | None = None):
        self.own = SafeDir(root)
        self.layers = tuple(SafeDir(layer) for layer in layers if layer != root)
        self._cache = cache
        self._holds: dict[str, Lock] = {}
        self._guard = threading.Lock()

    @classmethod
    def open(cls, configuration: Configuration) -> Self:
        """Nothing is written before there is something to keep."""
        return cls(configuration.data / "models", configuration.stores, configuration.cache)

    def close(self) -> None:
        while self._holds:
            self._holds.popitem()[1].release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # Blobs

    def has(self, digest: str) -> bool:
        return self.where(digest) is not None

    def where(self, digest: str) -> SafeDir | None:
        """The store that has the blob: this one, or the first layer; None where none has."""
        found = self._find(digest)
        return found[0] if found else None

    def blob_path(self, digest: str) -> Path:
        """A plain file named by its digest, without a suffix. Raises ModelError where there is none."""
        where = self.where(digest)
        if where is None:
            raise ModelError(f"the file sha256:{digest[:12]}… is not in the store; pull its model again")
        return where.path(blob_parts(digest))

    def file_path(self, file: StoredFile) -> Path:
        """Where a model's file lies: in the store, or in the folder of the program that it was adopted from."""
        if file.path is None:
            return self.blob_path(file.digest)
        if not _is_file(file.path):
            raise ModelError(f"{file.path} is gone, where {file.name} was; put it back, or remove the model")
        return file.path

    @contextmanager
    def locked(self, digest: str, waiting: Waiting | None = None) -> Iterator[None]:
        """For one process at a time; afterwards the blob, where there is one, is kept for this store's `put`."""
        require_digest(digest)
        held = waited_lock(self.own, f"pull-{digest}", waiting)
        try:
            self._hold(digest)
            yield
        finally:
            held.release()

    @contextmanager
    def receive(
        self,
        digest: str | None = None,
        size_bytes: int | None = None,
        *,
        key: str = "",
        waiting: Waiting | None = None,
    ) -> Iterator[Partial]:
        """A file to fill and `finish`. A second process waits here, and then finds the blob `present`.

        Without a digest, `key` (an address and its version) says what it is, so that it can be taken up again; without
        either nothing is kept of an unfinished one. Raises ModelError where there is no room for it.
        """
        stem = _stem(digest, key)
        with ExitStack() as stack:
            stack.callback(waited_lock(self.own, f"receive-{stem}", waiting).release)
            if digest is not None:
                self._hold(digest)
            present = digest is not None and self._is_whole(digest, size_bytes)
            with translated(self.own.root):
                partial = Partial(
                    self.own, stem, digest=digest, size_bytes=size_bytes, present=present, keep=self._keep
                )
            stack.callback(partial.close if digest or key else partial.discard)
            if size_bytes is not None and not present:
                with translated(self.own.root):
                    require_room(self.own, lacking_bytes(self.own, stem, size_bytes), beside=(stem,))
            yield partial

    def add(self, path: Path, progress: Progress | None = None) -> str:
        """Copy a file of this machine into the store; gives its digest."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                with self.receive(None, size) as partial:
                    while piece := file.read(_PIECE_BYTES):
                        partial.append(piece)
                        if progress is not None:
                            progress(partial.bytes_done, size)
                    return partial.finish()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}; check its name and permissions") from error

    def add_bytes(self, content: bytes) -> str:
        """A small file; its digest."""
        digest = hashlib.sha256(content).hexdigest()
        with self.receive(digest, len(content)) as partial:
            if not partial.present:
                partial.restart()
                partial.append(content)
            return partial.finish()

    def room_for_all(self, sizes: Mapping[str, int]) -> None:
        """Of files by digest; what is here of them, whole or in part, takes no room, also where another process is at
        it. Raises ModelError when the rest does not fit."""
        with translated(self.own.root):
            stems = {_stem(digest, ""): size for digest, size in sizes.items() if not self.has(digest)}
            lacking = sum(lacking_bytes(self.own, stem, size) for stem, size in stems.items())
            require_room(self.own, lacking, beside=stems)

    def room_for(self, size_bytes: int) -> None:
        """Raises ModelError when so much more does not fit, with what other processes are still to write."""
        with translated(self.own.root):
            require_room(self.own, size_bytes)

    # Manifests

    def list(self) -> tuple[Manifest, ...]:
        """Every model that can be read, by name; of one name the store's own, then the first layer's."""
        return self.listing().manifests

    def listing(self) -> Listing:
        """`list`, and what is wrong with manifests that cannot be read."""
        with translated(self.own.root):
            return catalogue.listing((self.own, *self.layers))

    def get(self, name: ModelName) -> Manifest:
        """Raises ModelError where there is none of that name, naming what there is."""
        for rooted in (self.own, *self.layers):
            with translated(rooted.root):
                found = catalogue.read(rooted, name)
            if found is not None:
                return found
        raise ModelError(self._unknown(name))

    def is_own(self, name: ModelName) -> bool:
        """Whether it lies in the store itself, and not only in a layer."""
        return self.root_of(name) == self.own.root

    def root_of(self, name: ModelName) -> Path | None:
        """Of the store in which it lies: this one, or the first layer; None where it lies in none."""
        for rooted in (self.own, *self.layers):
            with translated(rooted.root):
                if catalogue.exists(rooted, name):
                    return rooted.root
        return None

    def missing(self, manifest: Manifest) -> tuple[StoredFile, ...]:
        """Those of its files that are not there, or not of their size."""
        return tuple(file for file in manifest.files if self._size_of(file) != file.size_bytes)

    def put(self, manifest: Manifest, *, new: bool = False, merge: Merge | None = None) -> Manifest:
        """Keep it under its name, in place of what had that name; blobs that only that one used go.

        Gives it as kept: a name that differs from a known one by case alone takes the known spelling, and `merge`
        makes it one with what had that name. Raises ModelError when a file of it is not in the store, and with `new`
        when the name is taken.
        """
        with translated(self.own.root), lock(self.own, "store"):
            if new and catalogue.exists(self.own, manifest.name):
                raise ModelError(f"{manifest.name} is there already; remove it first: trilithon rm {manifest.name}")
            if missing := self.missing(manifest):
                raise ModelError(f"{missing[0].name} of {manifest.name} is not in the store whole; pull it again")
            kept = catalogue.spelled(self.own, replace(manifest.name, digest=""))
            before = self._readable(kept)
            manifest = replace(manifest, name=kept)
            if before is not None and merge is not None:
                gone = self.missing(before)
                there = tuple(file for file in before.files if file not in gone)
                manifest = merge(manifest, replace(before, files=there))
            catalogue.write(self.own, manifest)
            if before is not None:
                self._drop(before)
        for file in manifest.files:
            if held := self._holds.pop(file.digest, None):
                held.release()
        return manifest

    def copy(self, source: ModelName, target: ModelName) -> Manifest:
        """The same files under another name. Raises ModelError where the name is taken."""
        return self.put(replace(self.get(source), name=target), new=True)

    def remove(self, name: ModelName) -> Removal:
        """The name, and the blobs that no other manifest uses. A blob that is being pulled stays."""
        with translated(self.own.root), lock(self.own, "store"):
            if not catalogue.exists(self.own, name):
                raise ModelError(self._not_removable(name))
            manifest = self._readable(name)
            self._remove_links(name)
            catalogue.remove(self.own, name)
            if manifest is None:
                return Removal(0, ("its manifest could not be read; trilithon prune frees what it used",))
            return self._drop(manifest)

    # Under the store's lock

    def _drop(self, manifest: Manifest) -> Removal:
        """Its blobs, those that no manifest names any more."""
        left = catalogue.listing((self.own,))
        if left.problems:
            return Removal(0, (f"its files stay until this is fixed: {left.problems[0]}",))
        unused = {file.digest for file in manifest.files if file.path is None} - left.digests
        return self.remove_blobs(sorted(unused))

    def remove_blobs(self, digests: Sequence[str]) -> Removal:
        """Those that nobody holds. The caller has the store's lock, and knows that no manifest names them."""
        freed, kept = 0, []
        for digest in digests:
            held = try_lock(self.own, f"hold-{digest}")
            if held is None:
                kept.append(f"sha256:{digest[:12]}… stays: it is being pulled")
                continue
            with suppress(FileNotFoundError):
                size = self.own.status(blob_parts(digest)).st_size
                self.own.unlink(blob_parts(digest))
                freed += size
            held.release()
        return Removal(freed, tuple(kept))

    def _remove_links(self, name: ModelName) -> None:
        folder = (LINKS_FOLDER, *catalogue.parts_of(self.own, name))
        for below in self.own.names(folder):
            self.own.remove_entries((*folder, below))
            self.own.remove_empty((*folder, below))

    # What the others rest on

    def _size_of(self, file: StoredFile) -> int | None:
        if file.path is not None:
            return file.path.stat().st_size if _is_file(file.path) else None
        found = self._find(file.digest)
        return found[1].st_size if found else None

    def _find(self, digest: str) -> tuple[SafeDir, os.stat_result] | None:
        for rooted in (self.own, *self.layers):
            with translated(rooted.root), suppress(FileNotFoundError):
                return rooted, rooted.status(blob_parts(digest))
        return None

    def _is_whole(self, digest: str, size_bytes: int | None) -> bool:
        """A blob that lost its end to a bad disk is received anew, and takes its place."""
        found = self._find(digest)
        return found is not None and size_bytes in (None, found[1].st_size)

    def _hold(self, digest: str) -> None:
        with self._guard:
            if digest not in self._holds:
                self._holds[digest] = waited_lock(self.own, f"hold-{digest}", None, shared=True)

    def _keep(self, digest: str, status: os.stat_result) -> None:
        """Before a blob gets its name: nobody removes it, and nobody has to hash it again."""
        self._hold(digest)
        if self._cache is not None:
            remember_sha256(self._cache, status, digest)

    def _readable(self, name: ModelName) -> Manifest | None:
        try:
            return catalogue.read(self.own, name)
        except ModelError:  # damaged, or of a newer Trilithon: `listing` tells
            return None

    def _unknown(self, name: ModelName) -> str:
        near = [str(each.name) for each in self.list() if each.name.model.casefold() == name.model.casefold()]
        if near:
            return f"there is no {name} in the store; there is {', '.join(near[:5])}"
        return f"there is no {name} in the store; see trilithon list, or fetch it: trilithon pull {name}"

    def _not_removable(self, name: ModelName) -> str:
        for layer in self.layers:
            if catalogue.exists(layer, name):
                return f"{name} lies in {layer.root}, which is only read; remove it there, or from the setting stores"
        return self._unknown(name)


def _stem(digest: str | None, key: str) -> str:
    if digest is not None:
        require_digest(digest)
        return f"sha256-{digest}"
    return f"key-{hashlib.sha256(key.encode()).hexdigest()}" if key else f"new-{os.getpid()}-{os.urandom(8).hex()}"


def _is_file(path: Path) -> bool:
    """False also where its folder is closed to us: to this user it is not there."""
    try:
        return path.is_file()
    except OSError:
        return False

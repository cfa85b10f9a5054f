"""From what a user wrote to the file that an engine opens: a path as it is, a name through the store."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.file import ModelFile, read_model_file
from trilithon.models.hashing import Progress
from trilithon.models.locks import lock
from trilithon.models.manifest import Manifest, StoredFile
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Repository, parse_reference
from trilithon.models.rooted import Rooted
from trilithon.models.store import LINKS_FOLDER, ModelStore

__all__ = ["Adopted", "Suits", "choose", "find_model", "locate", "model_name", "place", "resolve", "weights_of"]

Suits = Callable[[StoredFile], bool]
"""Whether what shall run the model could run this file."""
Adopted = Callable[[], Iterable[Manifest]]
"""Models of other programs; looked for only when the store has none of that name."""

_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def model_name(text: str) -> ModelName:
    """What the store calls it. Raises ModelError for a path and a URL."""
    reference = parse_reference(text)
    if isinstance(reference, Repository):
        return reference.local_name
    if isinstance(reference, ModelName):
        return reference
    raise ModelError(f"{text[:80]} is not the name of a model; see trilithon list")


def find_model(name: ModelName, store: ModelStore, adopted: Adopted | None = None) -> Manifest:
    """From the store, its layers or another program's models, in this order."""
    try:
        return store.get(name)
    except ModelError:
        theirs = tuple(adopted()) if adopted else ()
        for manifest in theirs:
            if manifest.name.same_as(name):
                return manifest
        near = [str(each.name) for each in theirs if each.name.model.casefold() == name.model.casefold()]
        if near:
            raise ModelError(f"there is no {name}; other programs have {', '.join(near[:5])}") from None
        raise


def resolve(
    reference: str,
    store: ModelStore,
    suits: Suits,
    *,
    cache: Path,
    adopted: Adopted | None = None,
    progress: Progress | None = None,
) -> ModelFile:
    return read_model_file(locate(reference, store, suits, adopted), cache, progress)


def locate(reference: str, store: ModelStore, suits: Suits, adopted: Adopted | None = None) -> Path:
    """The path that an engine opens. A file of that name, relative to where we are, goes before a model."""
    found = ModelPath(Path(reference)) if _is_file(reference) else parse_reference(reference)
    if isinstance(found, ModelPath):
        return found.path.absolute()
    if isinstance(found, ModelUrl):
        raise ModelError(f"{reference[:80]} is fetched first: trilithon pull {reference[:80]}")
    name = found.local_name if isinstance(found, Repository) else found
    manifest = find_model(name, store, adopted)
    return place(manifest, choose(manifest, suits), store)


def choose(manifest: Manifest, suits: Suits) -> StoredFile:
    """The first of its weights that suits; the first of all where none does, for the engine to say why it cannot."""
    weights = weights_of(manifest)
    if not weights:
        raise ModelError(f"{manifest.name} has no weights; pull it again")
    return next(filter(suits, weights), weights[0])


def weights_of(manifest: Manifest) -> tuple[StoredFile, ...]:
    """Those that can be opened: of several shards the first."""
    return tuple(file for file in manifest.of_role("weights") if not _is_later_shard(file))


def place(manifest: Manifest, file: StoredFile, store: ModelStore) -> Path:
    """Where the file can be opened under its own name, with the rest of its shards and what belongs to it beside it.

    Engines tell formats by suffix, find shards by number and an RKLLM file's tokenizer by its folder, and blobs have
    neither name nor neighbours: links to them do. Where no link can be made a single GGUF file does without.
    """
    target, beside = store.file_path(file), _beside(manifest, file)
    if target.name == file.name and all(each.path or each.role == "license" for each in beside):
        return target
    key = file.digest[:16] or hashlib.sha256(str(file.path).encode()).hexdigest()[:16]
    folder = (LINKS_FOLDER, *manifest.name.parts, key)
    wanted = {each.name: str(store.file_path(each).absolute()) for each in beside}
    try:
        _link(store.own, folder, wanted)
    except (OSError, ModelError) as error:
        if file.format == "gguf" and not _SHARD.fullmatch(file.name):
            return target
        raise ModelError(
            f"{store.own.root} takes no symbolic links ({error}); set TRILITHON_DATA to a folder that does"
        ) from error
    return store.own.path((*folder, file.name))


def _link(own: Rooted, folder: tuple[str, ...], wanted: Mapping[str, str]) -> None:
    """Links of these names, and nothing else in the folder."""
    if {name: own.target((*folder, name)) for name in own.names(folder)} == wanted:
        return
    with lock(own, "store"):
        for stale in set(own.names(folder)) - set(wanted):
            own.unlink((*folder, stale))
        for name, target in wanted.items():
            if own.target((*folder, name)) != target:
                own.link((*folder, name), Path(target))


def _beside(manifest: Manifest, file: StoredFile) -> Sequence[StoredFile]:
    """The file, its shards, and what is no other weights and made for no other chip."""
    same = _SHARD.fullmatch(file.name)
    found = [file]
    for each in manifest.files:
        if each.role == "weights":
            shard = _SHARD.fullmatch(each.name)
            if same and shard and (shard["base"], shard["count"]) == (same["base"], same["count"]) and each != file:
                found.append(each)
        elif each.target_platform in ("", file.target_platform):
            found.append(each)
    return found


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a zero byte in it
        return False


def _is_later_shard(file: StoredFile) -> bool:
    shard = _SHARD.fullmatch(file.name)
    return shard is not None and int(shard["number"]) != 1

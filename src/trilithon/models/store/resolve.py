"""From what a user wrote to the file that an engine opens: a path as it is, a name through the store."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.files.file_names import shard_of
from trilithon.models.files.hashing import Progress
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.files.quantizations import PROJECTOR_PREFERRED
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Repository, parse_reference
from trilithon.models.store.locks import lock
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import LINKS_FOLDER, ModelStore
from trilithon.models.store.safe_dir import SafeDir

__all__ = [
    "Adopted",
    "Companions",
    "Suits",
    "choose",
    "companions",
    "find_model",
    "locate",
    "meant",
    "model_name",
    "place",
    "read_weights",
    "resolve",
    "weights_of",
]

Suits = Callable[[StoredFile], bool]
"""Whether what shall run the model could run this file."""
Adopted = Callable[[], Iterable[Manifest]]
"""Models of other programs; looked for only when the store has none of that name."""

_WHOLE_SCALE = 1.0  # a Modelfile's ADAPTER has no other


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What an engine opens beside the weights: LoRA adapters, each with its scale, and what lets the model see (a
    projector in a GGUF, or an encoder for the same chip)."""

    adapters: tuple[tuple[Path, float], ...] = ()
    projector: Path | None = None


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
    found = meant(reference, store, adopted)
    if isinstance(found, Path):
        return read_model_file(found, cache, progress)
    return read_weights(found, choose(found, suits), store, cache, progress)


def locate(reference: str, store: ModelStore, suits: Suits, adopted: Adopted | None = None) -> Path:
    """The path that an engine opens."""
    found = meant(reference, store, adopted)
    return found if isinstance(found, Path) else place(found, choose(found, suits), store)


def meant(reference: str, store: ModelStore, adopted: Adopted | None = None) -> Path | Manifest:
    """The absolute path of a file, or a model. A file of that name, relative to where we are, goes before a model."""
    found = ModelPath(Path(reference)) if _is_file(reference) else parse_reference(reference)
    if isinstance(found, ModelPath):
        return found.path.absolute()
    if isinstance(found, ModelUrl):
        raise ModelError(f"{reference[:80]} is fetched first: trilithon pull {reference[:80]}")
    return find_model(found.local_name if isinstance(found, Repository) else found, store, adopted)


def read_weights(
    manifest: Manifest, file: StoredFile, store: ModelStore, cache: Path | None, progress: Progress | None = None
) -> ModelFile:
    """The file as an engine has to know it, with what the manifest says belongs to it; `cache` as for
    `read_model_file`."""
    found, beside = read_model_file(place(manifest, file, store), cache, progress), companions(manifest, file, store)
    return replace(
        found,
        vision_encoder=beside.projector or found.vision_encoder,
        adapters=beside.adapters,
        capabilities=found.capabilities | ({"vision"} if beside.projector else set()),
        synthetic=found.synthetic or manifest.synthetic,
    )


def companions(manifest: Manifest, file: StoredFile, store: ModelStore) -> Companions:
    """Which of the model's files go with these weights, and where they lie. Raises ModelError for one that is gone."""
    adapters = [each for each in manifest.of_role("adapter") if each.format == file.format]
    projector = _projector(manifest, file)
    return Companions(
        adapters=tuple((store.file_path(each).absolute(), _WHOLE_SCALE) for each in adapters),
        projector=store.file_path(projector).absolute() if projector else None,
    )


def _projector(manifest: Manifest, file: StoredFile) -> StoredFile | None:
    """One of those that fit: an encoder that says it is for the chip, a projector whose numbers are fine enough."""
    if file.format == "gguf":
        found = [each for each in manifest.of_role("projector") if each.format == "gguf"]
        return min(found, key=_coarseness, default=None)
    found = [each for each in manifest.of_role("vision") if each.target_platform in ("", file.target_platform)]
    return min(found, key=lambda each: not each.target_platform, default=None)


def _coarseness(projector: StoredFile) -> int:
    kind = projector.quantization
    return PROJECTOR_PREFERRED.index(kind) if kind in PROJECTOR_PREFERRED else len(PROJECTOR_PREFERRED)


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
    if target.name == file.name and all(each.path or each.role == "license" for each in beside.values()):
        return target
    key = file.digest[:16] or hashlib.sha256(str(file.path).encode()).hexdigest()[:16]
    folder = (LINKS_FOLDER, *manifest.name.parts, key)
    wanted = {name: str(store.file_path(each).absolute()) for name, each in beside.items()}
    try:
        _link(store.own, folder, wanted)
    except (OSError, ModelError) as error:
        if file.format == "gguf" and shard_of(file.name) is None:
            return target
        raise ModelError(
            f"{store.own.root} takes no symbolic links ({error}); set TRILITHON_DATA to a folder that does"
        ) from error
    return store.own.path((*folder, file.name))


def _link(own: SafeDir, folder: tuple[str, ...], wanted: Mapping[str, str]) -> None:
    """Links of these names, and nothing else in the folder."""
    if {name: own.target((*folder, name)) for name in own.names(folder)} == wanted:
        return
    with lock(own, "store"):
        for stale in set(own.names(folder)) - set(wanted):
            own.unlink((*folder, stale))
        for name, target in wanted.items():
            if own.target((*folder, name)) != target:
                own.link((*folder, name), Path(target))


def _beside(manifest: Manifest, file: StoredFile) -> Mapping[str, StoredFile]:
    """By the name of its link: the file, its shards, and what is found beside it, by whoever opens the file, without
    being named: texts, and the projector. Adapters and draft models are named, and would be taken for other models."""
    own, projector = shard_of(file.name), _projector(manifest, file)
    found = {file.name: file}
    for each in manifest.files:
        shard = shard_of(each.name)
        if each.role == "weights" and own and shard and (shard.base, shard.count) == (own.base, own.count):
            found[each.name] = each
        elif each.role in ("tokenizer", "template", "license") or each == projector:
            found[_findable(each)] = each
    return found


def _findable(file: StoredFile) -> str:
    """A projector is told from weights by its name."""
    return file.name if file.role != "projector" or "mmproj" in file.name.lower() else f"mmproj-{file.name}"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a zero byte in it
        return False


def _is_later_shard(file: StoredFile) -> bool:
    shard = shard_of(file.name) if file.format == "gguf" else None
    return shard is not None and shard.number != 1

"""From a model name or a path to the file that an engine opens."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError, NoSuchModel
from trilithon.language import listed
from trilithon.models.files.file_names import shard_of
from trilithon.models.files.hashing import Progress
from trilithon.models.files.kinds import read_kind
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.files.quantizations import projector_rank
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Repository, parse_reference, similar_models
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
    "find_reference",
    "locate",
    "makes_text",
    "model_name",
    "openable_path",
    "read_weights",
    "resolve",
    "weights_of",
]

Suits = Callable[[StoredFile], bool]
"""Whether the placements of the user can run this file."""
Adopted = Callable[[], Iterable[Manifest]]
"""Finds the models of other programs; called only when the store has no model of that name."""

_ADAPTER_SCALE = 1.0  # ADAPTER in a Modelfile names no scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What an engine opens with the weights: LoRA adapters with their scale, and the vision encoder (a projector in a
    GGUF, or an encoder for the same chip)."""

    adapters: tuple[tuple[Path, float], ...] = ()
    projector: Path | None = None


def model_name(text: str) -> ModelName:
    """The name in the store. Raises ModelError for a path or a URL."""
    reference = parse_reference(text)
    if isinstance(reference, Repository):
        return reference.local_name
    if isinstance(reference, ModelName):
        return reference
    raise ModelError("{text} is not the name of a model; see trilithon list", text=text[:80])


def find_model(name: ModelName, store: ModelStore, adopted: Adopted | None = None) -> Manifest:
    """Find a model in the store, its layers or another program's models, in this order. Raises ModelError."""
    try:
        return store.get(name)
    except ModelError:
        others = tuple(adopted()) if adopted else ()
        for manifest in others:
            if manifest.name.same_as(name):
                return manifest
        similar = similar_models(name, [model.name for model in others])
        if similar:
            raise NoSuchModel(
                "there is no {name}; other programs have {names}; or fetch it: trilithon pull {name}",
                name=name,
                names=listed(similar),
            ) from None
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
    """Find and read the file that an engine opens; `cache` has the remembered checksums. Raises ModelError."""
    model = find_reference(reference, store, adopted)
    if isinstance(model, Path):
        return read_model_file(model, cache, progress)
    return read_weights(model, choose(model, suits), store, cache, progress)


def locate(reference: str, store: ModelStore, suits: Suits, adopted: Adopted | None = None) -> Path:
    """The path that an engine opens. Raises ModelError."""
    model = find_reference(reference, store, adopted)
    return model if isinstance(model, Path) else openable_path(model, choose(model, suits), store)


def find_reference(reference: str, store: ModelStore, adopted: Adopted | None = None) -> Path | Manifest:
    """The absolute path of a file, or a model. A file in the current folder takes precedence over a model of that name.
    Raises ModelError."""
    parsed = ModelPath(Path(reference)) if _is_file(reference) else parse_reference(reference)
    if isinstance(parsed, ModelPath):
        return parsed.path.absolute()
    if isinstance(parsed, ModelUrl):
        raise ModelError("{reference} is a URL; fetch it first: trilithon pull {reference}", reference=reference[:80])
    return find_model(parsed.local_name if isinstance(parsed, Repository) else parsed, store, adopted)


def makes_text(reference: str, store: ModelStore) -> bool:
    """False for an embedding model and a reranker, by the header of the first weights. Raises ModelError."""
    model = find_reference(reference, store)
    if isinstance(model, Path):
        path, format_ = model, "rkllm" if model.suffix.lower() == ".rkllm" else "gguf"
    else:
        file = choose(model, lambda _: True)
        path, format_ = store.file_path(file), file.format
    return format_ != "gguf" or read_kind(path).name not in ("embedding", "reranker")


def read_weights(
    manifest: Manifest, file: StoredFile, store: ModelStore, cache: Path | None, progress: Progress | None = None
) -> ModelFile:
    """The facts of a file for an engine, with the companions that the manifest names; `cache` as for
    `read_model_file`."""
    model_file = read_model_file(openable_path(manifest, file, store), cache, progress)
    others = companions(manifest, file, store)
    return replace(
        model_file,
        vision_encoder=others.projector or model_file.vision_encoder,
        adapters=others.adapters,
        capabilities=model_file.capabilities | ({"vision"} if others.projector else set()),
        synthetic=model_file.synthetic or manifest.synthetic,
    )


def companions(manifest: Manifest, file: StoredFile, store: ModelStore) -> Companions:
    """The files of the model that belong to these weights. Raises ModelError for one that is missing."""
    adapters = [adapter for adapter in manifest.of_role("adapter") if adapter.format == file.format]
    projector = _projector(manifest, file)
    return Companions(
        adapters=tuple((store.file_path(adapter).absolute(), _ADAPTER_SCALE) for adapter in adapters),
        projector=store.file_path(projector).absolute() if projector else None,
    )


def _projector(manifest: Manifest, file: StoredFile) -> StoredFile | None:
    """The best that fits: an encoder that names the chip, or the projector of the preferred quantisation."""
    if file.format == "gguf":
        projectors = [projector for projector in manifest.of_role("projector") if projector.format == "gguf"]
        return min(projectors, key=lambda projector: projector_rank(projector.quantization), default=None)
    encoders = [vision for vision in manifest.of_role("vision") if vision.target_platform in ("", file.target_platform)]
    return min(encoders, key=lambda encoder: not encoder.target_platform, default=None)


def choose(manifest: Manifest, suits: Suits) -> StoredFile:
    """The first of its weights that can run; the first of all if none can, so that the engine says why."""
    weights = weights_of(manifest)
    if not weights:
        raise ModelError("{name} has no weights; pull it again", name=manifest.name)
    return next(filter(suits, weights), weights[0])


def weights_of(manifest: Manifest) -> tuple[StoredFile, ...]:
    """The weights that can be opened: of several shards the first one."""
    return tuple(file for file in manifest.of_role("weights") if not _is_later_shard(file))


def openable_path(manifest: Manifest, file: StoredFile, store: ModelStore) -> Path:
    """A path under the file's own name, with its shards, tokenizer and projector beside it. Raises ModelError.

    Engines recognise formats by the suffix, shards by their number and an RKLLM file's tokenizer by its folder. Blobs
    have neither names nor neighbours, so they are linked. A single GGUF also works without a link."""
    target, neighbours = store.file_path(file), _neighbours(manifest, file)
    if target.name == file.name and all(other.path or other.role == "license" for other in neighbours.values()):
        return target
    key = file.digest[:16] or hashlib.sha256(os.fsencode(str(file.path))).hexdigest()[:16]
    folder = (LINKS_FOLDER, *manifest.name.parts, key)
    links = {name: str(store.file_path(other).absolute()) for name, other in neighbours.items()}
    try:
        _link(store.local, folder, links)
    except (OSError, ModelError) as error:
        if file.format == "gguf" and shard_of(file.name) is None:
            return target
        raise ModelError(
            "{root} does not support symbolic links ({reason}); set TRILITHON_DATA to a folder that does",
            root=store.local.root,
            reason=error,
        ) from error
    return store.local.path((*folder, file.name))


def _link(safe_dir: SafeDir, folder: tuple[str, ...], links: Mapping[str, str]) -> None:
    """Make these links (name → target), and remove all others in the folder."""
    if {name: safe_dir.target((*folder, name)) for name in safe_dir.names(folder)} == links:
        return
    with lock(safe_dir, "store"):
        for stale in set(safe_dir.names(folder)) - set(links):
            safe_dir.unlink((*folder, stale))
        for name, target in links.items():
            if safe_dir.target((*folder, name)) != target:
                safe_dir.link((*folder, name), Path(target))


def _neighbours(manifest: Manifest, file: StoredFile) -> Mapping[str, StoredFile]:
    """By the name of the link: the file, its shards, and what engines look for beside it (texts and the projector).
    Adapters and draft models are passed by path, and beside the file they would be taken for other models."""
    first, projector = shard_of(file.name), _projector(manifest, file)
    neighbours = {file.name: file}
    for other in manifest.files:
        shard = shard_of(other.name)
        if other.role == "weights" and first and shard and (shard.base, shard.count) == (first.base, first.count):
            neighbours[other.name] = other
        elif other.role in ("tokenizer", "template", "license") or other == projector:
            neighbours[_link_name(other)] = other
    return neighbours


def _link_name(file: StoredFile) -> str:
    """A projector is recognised by its name."""
    return file.name if file.role != "projector" or "mmproj" in file.name.lower() else f"mmproj-{file.name}"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a zero byte in it
        return False


def _is_later_shard(file: StoredFile) -> bool:
    shard = shard_of(file.name) if file.format == "gguf" else None
    return shard is not None and shard.number != 1

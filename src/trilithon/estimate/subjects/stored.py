"""A model of the store by its manifest alone: a list of models opens none of their files."""

import re

from trilithon.estimate.answer import Subject
from trilithon.estimate.sizes import ModelSize, WeightBytes, bits_of, size_named
from trilithon.models.files.file_names import shard_of
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.resolve import weights_of

__all__ = ["stored_subject"]

_LEAST_BILLIONS = 0.05  # smaller models are not what estimates are fitted to
# A known model's file differs from its formula by the types of single tensors; another model's name by more.
_SAME_SIZE = 1.3
_SILENT = re.compile(r"embed|rerank", re.IGNORECASE)


def stored_subject(manifest: Manifest, platform: str = "") -> Subject | None:
    """Its bytes are those of its weights, its other sizes those of its name, or typical ones. None for weights of
    another chip than `platform`, of an unknown quantisation, or of a model that makes no text by its name."""
    weights = next((file for file in weights_of(manifest) if file.target_platform in ("", platform)), None)
    if weights is None or any(_SILENT.search(name) for name in (str(manifest.name), weights.name)):
        return None
    size = _size(manifest, weights)
    if size is None:
        return None
    name, quantization = str(manifest.name), weights.quantization
    if weights.format != "gguf":
        return Subject(reference=name, size=size, quantization=quantization, converted=True)
    return Subject(reference=name, size=size, weights=_bytes(manifest, weights, size), quantization=quantization)


def _bytes(manifest: Manifest, weights: StoredFile, size: ModelSize) -> WeightBytes:
    held, head = _held(manifest, weights), size.head * bits_of(weights.quantization, size.embedding)[1] / 8
    heads = head * (1 if size.tied else 2)
    # Of a file, per-layer embeddings are a part that no token reads.
    body = max(held - heads, held / 2) * size.read / (size.body + size.unread)
    return WeightBytes(body=body, head=min(head, held / 2), held=held)


def _size(manifest: Manifest, weights: StoredFile) -> ModelSize | None:
    try:
        bits, _ = bits_of(weights.quantization, 256)
    except KeyError:
        return None
    billions = 8 * _held(manifest, weights) / bits / 1e9
    if billions < _LEAST_BILLIONS:
        return None
    names = (str(manifest.name), weights.name.rpartition(".")[0], "of this size")
    sizes = [size for name in names if (size := size_named(name, billions)) is not None]
    near = [size for size in sizes if 1 / _SAME_SIZE < size.parameters / 1e9 / billions < _SAME_SIZE]
    return next((size for size in near if size.exact), next(iter(near), None))


def _held(manifest: Manifest, weights: StoredFile) -> float:
    """Bytes of the file and its other shards."""
    first = shard_of(weights.name)
    if first is None:
        return float(weights.size_bytes)
    shards = [(file, shard_of(file.name)) for file in manifest.of_role("weights")]
    return float(sum(file.size_bytes for file, shard in shards if shard is not None and shard.base == first.base))

"""Quantises a model of the store: a plan checks what can be checked before, then the file is written and stored."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.engines.llamacpp.quantize import known_kind, quantize
from trilithon.engines.toolrun import conversions
from trilithon.errors import ModelError, NoRoom, UserError
from trilithon.models.files.file_names import shard_of
from trilithon.models.files.gguf import GgufFacts, read_gguf
from trilithon.models.files.hashing import Progress
from trilithon.models.files.quantizations import UNQUANTISED
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import openable_path, weights_of
from trilithon.models.store.staging import StagingDir, staging_dir
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["Quantizing", "plan_quantized", "quantized"]


@dataclass(frozen=True, slots=True)
class Quantizing:
    """`weights` of `manifest` are to be quantised to `kind`, as llama-quantize writes it."""

    manifest: Manifest
    weights: GgufFacts
    kind: str


def plan_quantized(manifest: Manifest, kind: str, store: ModelStore, configuration: Configuration) -> Quantizing:
    """Takes the weights with the most bits. Raises UserError for an unknown kind, NoRoom where the disk is too small,
    and ModelError where the model is not a GGUF, already quantised, or missing."""
    known = known_kind(kind)
    files = [file for file in weights_of(manifest) if file.format == "gguf"]
    if not files:
        raise ModelError(f"quantize takes GGUF files, and {manifest.files[0].name} is not one; leave it out")
    finest = next((file for file in files if file.quantization.upper() in UNQUANTISED), files[0])
    weights = read_gguf(_openable(manifest, finest, store))
    if weights.quantization not in UNQUANTISED:
        raise ModelError(
            f"{finest.name} is already {weights.quantization}, and gets worse if quantised again; take the F16 file"
        )
    _require_room(weights.parameters * _least_bits(known) // 8, store, conversions(configuration))
    return Quantizing(manifest, weights, known)


def quantized(
    plan: Quantizing,
    store: ModelStore,
    configuration: Configuration,
    progress: Callable[[str, float | None], None],
    keeping: Progress,
    *,
    check: Callable[[], None] | None = None,
    low_priority: bool = False,
) -> Manifest:
    """The manifest with the quantised file, which is then in the store, in place of its weights. `progress` is called
    while the tool runs and `keeping` while the file is copied; they and `check` may raise to cancel, and then nothing
    is stored. Raises as `quantize` does."""
    name = f"{plan.manifest.name.model}-{plan.kind.lower()}.gguf"
    with _work(conversions(configuration) / name) as work:
        target = work.folder / name
        source = plan.weights.path
        path = quantize(source, target, plan.kind, configuration, progress, check=check, low_priority=low_priority)
        size = path.stat().st_size
        digest = store.add(path, keeping)
    file = StoredFile(role="weights", digest=digest, size_bytes=size, name=name, format="gguf", quantization=plan.kind)
    others = (other for other in plan.manifest.files if other.role != "weights")
    return replace(plan.manifest, files=(file, *others))


@contextmanager
def _work(target: Path) -> Iterator[StagingDir]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_dir(target) as work:
            yield work
    except OSError as error:
        problem = f"{error.filename or target.parent}: {error.strerror}; name another folder with TRILITHON_CACHE"
        raise (NoRoom if error.errno == errno.ENOSPC else UserError)(problem) from error


def _openable(manifest: Manifest, file: StoredFile, store: ModelStore) -> Path:
    """llama.cpp finds the shards of a model by their names, so they need a path with that name."""
    return openable_path(manifest, file, store) if shard_of(file.name) else store.file_path(file)


def _least_bits(kind: str) -> int:
    """Bits per weight by the name of the kind; its scales take some more."""
    match = re.search(r"\d+", kind)
    return int(match[0]) if match else 1


def _require_room(least_bytes: int, store: ModelStore, folder: Path) -> None:
    """Raises NoRoom where there is no room for the file in `folder` and its copy in the store."""
    work, stored = _existing(folder), _existing(store.local.root)
    free = shutil.disk_usage(work).free
    if least_bytes > free:
        raise NoRoom(
            f"{format_bytes(least_bytes)} are needed in {folder} and {format_bytes(free)} are free; free some, or set "
            "TRILITHON_CACHE to a folder on a larger disk"
        )
    store.room_for(least_bytes * (2 if work.stat().st_dev == stored.stat().st_dev else 1))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())

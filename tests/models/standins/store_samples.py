"""What the tests of the store share: a small file, and manifests of it."""

import hashlib
import random
from pathlib import Path

import pytest

from trilithon.errors import ModelError
from trilithon.models.names import ModelName, parse_reference
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore

CONTENT = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def name_of(text: str) -> ModelName:
    found = parse_reference(text)
    assert isinstance(found, ModelName)
    return found


def weights(digest: str = DIGEST, size_bytes: int = len(CONTENT), name: str = "m.gguf") -> StoredFile:
    return StoredFile(
        role="weights", digest=digest, size_bytes=size_bytes, name=name, format="gguf", quantization="Q4_K_M"
    )


def manifest_of(name: str, *files: StoredFile) -> Manifest:
    return Manifest(name=name_of(name), files=files, source="a test", created=now())


def add(store: ModelStore, name: str, content: bytes = CONTENT) -> Manifest:
    digest = store.add_bytes(content)
    return store.put(manifest_of(name, weights(digest, len(content))))


def entries(root: Path) -> set[str]:
    """Every file below, by its way from the root."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def refusal(call: object, *words: object, **more: object) -> str:
    assert callable(call)
    with pytest.raises(ModelError) as caught:
        call(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)

"""An empty store for a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trilithon.models.store.model_store import ModelStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


@pytest.fixture
def store(root: Path) -> Iterator[ModelStore]:
    with ModelStore(root) as opened:
        yield opened

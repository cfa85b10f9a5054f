import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from board_tree import plant_tree

from trilithon.board.sysfs import Machine


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Machine]:
    """`plant("rk3588_vendor", without=("/proc/device-tree/model",), files={"/proc/…": "…"})` gives the Machine."""
    return functools.partial(plant_tree, tmp_path)

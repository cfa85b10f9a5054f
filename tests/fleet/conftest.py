"""What the tests of several boards share; see standins/live_boards.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_boards import LiveBoard

from trilithon.settings import Configuration


@pytest.fixture(scope="module")
def live_boards(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveBoard]]:
    """Two for all tests of a module; a test that kills one starts it again."""
    placement = "scripted/cpu:prefill=5000,decode=100"
    folder = tmp_path_factory.mktemp("boards")
    begun = []
    for name in ("rock1", "rock2"):
        (folder / name).mkdir()
        begun.append(LiveBoard(folder / name, tiny, placement))
    try:
        for board in begun:
            board.wait()
        yield begun
    finally:
        for board in begun:
            board.end()


@pytest.fixture
def configuration(home: Path) -> Configuration:
    return Configuration(data=home / "data" / "trilithon", cache=home / "cache")

"""What the tests of the server share; see standins/live_server.py."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_server import FAST, Serve, Server, running

from trilithon.board.snapshot import read_board
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.app import ServeOptions
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.service import Service
from trilithon.settings import Configuration, load_configuration


@pytest.fixture
def configuration(home: Path) -> Configuration:
    """Nothing of this machine's user: other programs' models are not looked at."""
    return load_configuration()


@pytest.fixture
def serve(configuration: Configuration) -> Iterator[Serve]:
    """`serve(*paths, placement=…, options=…, **of the pool)`: a server of these files until the test ends."""
    with contextlib.ExitStack() as live:

        def start(
            *paths: Path,
            placement: str = FAST,
            options: ServeOptions | None = None,
            slots: int = 1,
            hang_seconds: float = 60.0,
            configuration_of_its_own: Configuration | None = None,
            **pool: Any,
        ) -> Server:
            chosen = replace(configuration_of_its_own or configuration, hang_seconds=hang_seconds)
            shelf = Catalog(chosen, read_board(), paths=paths, placement=placement, slots=slots)
            folder = live.enter_context(workspace())
            return live.enter_context(running(Service(shelf, Pool(chosen, folder, **pool)), options))

        yield start

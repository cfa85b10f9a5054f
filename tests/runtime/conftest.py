"""What the tests of the runtime share."""

from pathlib import Path

import pytest

from trilithon.engines.base import Launch
from trilithon.runtime.process import Process


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Every child that is started, also those that nobody ever held."""
    started: list[Process] = []
    start = Process.start

    async def noted(launch: Launch, log: Path) -> Process:
        started.append(await start(launch, log))
        return started[-1]

    monkeypatch.setattr(Process, "start", noted)
    return started

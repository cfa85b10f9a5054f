"""One door to every runner: a placement is opened the same way, whether one process runs it or two."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["open_runner"]


@contextlib.asynccontextmanager
async def open_runner(
    placement: Placement, folder: Path, configuration: Configuration, waiting: Callable[[str], None] | None = None
) -> AsyncIterator[Runner]:
    """Start it in `folder`, which is private to it; `waiting` is told for whom it waits. Raises StartError."""

    def plain(one: Placement, place: Path, slots: Path | None = None) -> AbstractAsyncContextManager[Runner]:
        return Runner.open(
            engine(one.build.engine, configuration),
            one,
            place,
            start_seconds=configuration.start_seconds,
            hang_seconds=configuration.hang_seconds,
            slots=slots,
            waiting=waiting,
        )

    async with (
        plain(placement, folder)
        if placement.prefill is None
        else Handover.open_pair(placement, plain, folder, tell=waiting)
    ) as runner:
        yield runner

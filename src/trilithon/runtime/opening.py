"""Opens the runner of any placement, whether it is one process or a handover of two."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.runtime.handover.handover import Handover
from trilithon.runtime.runner import Runner
from trilithon.runtime.trials.grammar import GrammarTrial
from trilithon.runtime.trials.template import TemplateReplay, try_template
from trilithon.settings import Configuration

__all__ = ["open_runner"]


@contextlib.asynccontextmanager
async def open_runner(
    placement: Placement, folder: Path, configuration: Configuration, tell: Callable[[str], None] | None = None
) -> AsyncIterator[Runner]:
    """Start it in `folder`, which is private to it. `tell` gets lines about waits and memory. Raises StartError."""

    @contextlib.asynccontextmanager
    async def open_half(half: Placement, place: Path, slots: Path | None = None) -> AsyncIterator[Runner]:
        chosen = engine(half.build.engine, configuration)
        await try_template(chosen, half, place / "template", configuration)
        async with Runner.open(
            chosen,
            half,
            place,
            start_seconds=configuration.start_seconds,
            hang_seconds=configuration.hang_seconds,
            slots=slots,
            memory_bytes=configuration.engine_memory,
            tell=tell,
        ) as runner:
            yield runner

    async with (
        open_half(placement, folder)
        if placement.prefill is None
        else Handover.open_pair(placement, open_half, folder, tell=tell)
    ) as runner:
        chosen = engine(placement.build.engine, configuration)
        runner.admission = GrammarTrial(chosen, placement).check
        runner.post_mortem = TemplateReplay(chosen, placement).check
        yield runner

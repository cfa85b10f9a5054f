"""What the benchmark scripts share to run placements for real, outside the user's own folders."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.bench.workloads import measure, warm_up
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.measure.metrics import HEADLINE, metrics_of
from trilithon.measure.records import Test
from trilithon.models.fetch.demo import demo_model
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.process import workspace
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration, load_configuration

__all__ = ["TESTS", "configuration_with", "demo_path", "opened", "rates_of", "resolved"]

TESTS = (Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128))


def configuration_with(*builds: Path) -> Configuration:
    """The user's configuration, with these folders of llama-server programs alone and no PATH to find others on."""
    os.environ["PATH"] = "/usr/bin:/bin"
    return replace(load_configuration(), builds=builds)


def demo_path(configuration: Configuration) -> Path:
    return demo_model(configuration.cache)


def resolved(
    spelled: Sequence[str],
    model: Path,
    tests: Sequence[Test],
    configuration: Configuration,
    *,
    keep_window: bool = False,
) -> list[Placement]:
    plan = CampaignSetup(model=model, tests=tuple(tests), placements=tuple(spelled))
    found = resolve(plan, read_model_file(model, configuration.cache), read_board(), configuration)
    if not keep_window:
        return found
    return [replace(p, settings=replace(p.settings, full_window_cache=True)) for p in found]


@contextlib.asynccontextmanager
async def opened(placement: Placement, configuration: Configuration) -> AsyncIterator[Runner]:
    with workspace() as folder:
        async with Runner.open(
            engine(placement.build.engine, configuration),
            placement,
            folder / "runner",
            start_seconds=configuration.start_seconds,
            hang_seconds=configuration.hang_seconds,
        ) as runner:
            yield runner


async def rates_of(placement: Placement, configuration: Configuration) -> dict[str, float]:
    """Tokens per second of each of TESTS, by its name."""
    rates = {}
    async with opened(placement, configuration) as runner:
        await warm_up(runner, TESTS)
        for test in TESTS:
            rates[test.name] = metrics_of(await measure(runner, test))[HEADLINE[test.kind]]
    return rates

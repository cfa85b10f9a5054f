"""What the benchmark scripts share to run placements for real, outside the user's own folders."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from _figures import CannotMeasure, Figure, not_measured

from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.bench.workloads import measure, warm_up
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.measure.metrics import HEADLINE, metrics_of
from trilithon.measure.records import Test
from trilithon.measure.statistics import RUNS_FOR_AN_INTERVAL, interval
from trilithon.models.fetch.demo import demo_model
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.process import workspace
from trilithon.runtime.remote.measured import MeasuredRunner
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration, load_configuration

__all__ = [
    "ENGINE",
    "TESTS",
    "build_in",
    "configuration_with",
    "demo_path",
    "opened",
    "rates_of",
    "rates_with",
    "ratio_figures",
    "resolved",
]

ENGINE = "llama.cpp"
TESTS = (Test(kind="pp", prompt_tokens=512), Test(kind="tg", generated_tokens=128))


def configuration_with(*builds: Path) -> Configuration:
    """The user's configuration, with only these folders of llama-server programs and no PATH to find others on."""
    os.environ["PATH"] = "/usr/bin:/bin"
    return replace(load_configuration(), builds=builds)


def demo_path(configuration: Configuration) -> Path:
    return demo_model(configuration)


def build_in(folder: Path, configuration: Configuration) -> str:
    """The name of the llama.cpp build in `folder`, which is its own one when the user added the build under a name.

    Raises CannotMeasure when there is none."""
    program = (folder / "llama-server").resolve()
    for build in engine(ENGINE, configuration).builds():
        if Path(build.where) == program:
            return build.name
    raise CannotMeasure(f"{folder} holds no llama-server of plain llama.cpp; name the folder of a build (its bin/)")


def resolved(
    placement_specs: Sequence[str],
    model: Path,
    tests: Sequence[Test],
    configuration: Configuration,
    *,
    keep_window: bool = False,
) -> list[Placement]:
    setup = CampaignSetup(model=model, tests=tuple(tests), placements=tuple(placement_specs))
    placements = resolve(setup, read_model_file(model, configuration.cache), read_board(), configuration)
    if not keep_window:
        return placements
    return [replace(p, settings=replace(p.settings, full_window_cache=True)) for p in placements]


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


async def rates_of(
    placement: Placement, configuration: Configuration, tests: Sequence[Test] = TESTS
) -> dict[str, float]:
    """Tokens per second of each test, by its name."""
    async with opened(placement, configuration) as runner:
        await warm_up(runner, TESTS)
        return await rates_with(runner, tests)


async def rates_with(runner: MeasuredRunner, tests: Sequence[Test]) -> dict[str, float]:
    """Tokens per second of each test, by its name, of a runner that is warm."""
    return {test.name: metrics_of(await measure(runner, test))[HEADLINE[test.kind]] for test in tests}


def ratio_figures(label: str, ratios: Sequence[float]) -> dict[str, Figure]:
    """The median of the rounds' ratios and its 95% interval."""
    of_rounds = interval(ratios)
    too_few = not_measured(f"an interval needs {RUNS_FOR_AN_INTERVAL} rounds")
    return {
        label: of_rounds.median,
        f"{label} low": too_few if of_rounds.low is None else of_rounds.low,
        f"{label} high": too_few if of_rounds.high is None else of_rounds.high,
    }

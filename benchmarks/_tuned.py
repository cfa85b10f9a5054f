"""Whole tunes on this machine for benchmarks/tune.py, each held against what the engines do by themselves."""

import asyncio
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from _figures import Bound, Figure, not_measured
from _served import LLAMA_DEFAULTS, OLLAMA_FLAGS, seconds_of_server

from trilithon.bench.workloads import measure, warm_up
from trilithon.engines.base import Placement
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.measure.records import Test
from trilithon.measure.statistics import RatioResult, ratio
from trilithon.results.store.database import Store
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import workspace
from trilithon.settings import Configuration
from trilithon.tune.session import TuneOutcome, run_tune
from trilithon.tune.setup import TuneSetup

__all__ = ["real_bounds", "real_figures"]

_PREFILL_HEAVY = 16  # tokens of the prompt for each generated one
_SHARE_TOLD, _SECOND_TUNE, _LEAST_PREFILL_HEAVY = 0.9, 0.5, 1.3
_TOLD, _SECOND = "told ratios within their fresh intervals, share", "seconds of later tunes, part of the first's"


def real_figures(
    models: Sequence[Path], test: Test, budget_seconds: float, rounds: int, configuration: Configuration
) -> dict[str, Figure]:
    """`configuration` has the builds. The tunes keep their results in a folder that they share."""
    figures: dict[str, Figure] = {}
    spent, within = [], []
    with tempfile.TemporaryDirectory() as folder:
        here = replace(configuration, data=Path(folder))
        for model in models:
            setup = TuneSetup(
                model=model,
                prompt_tokens=test.prompt_tokens,
                generated_tokens=test.generated_tokens,
                budget_seconds=budget_seconds,
            )
            with Store.open(here.results_database) as store:
                outcome = asyncio.run(run_tune(setup, store, here, lambda line: print(line, file=sys.stderr)))
            spent.append(outcome.seconds)
            fresh = _fresh(outcome, test, rounds, here)
            figures |= _of_model(model.stem, outcome, fresh)
            if outcome.conclusion is not None and outcome.gained:
                told, same = outcome.conclusion.ratio, fresh["the engine's defaults"]
                within.append(same.low is not None and same.high is not None and same.low <= told <= same.high)
    figures[_TOLD] = sum(within) / len(within) if within else not_measured("the defaults were as good each time")
    figures[_SECOND] = max(spent[1:]) / spent[0] if len(spent) > 1 else not_measured("it needs two models")
    return figures


def _of_model(name: str, outcome: TuneOutcome, fresh: dict[str, RatioResult]) -> dict[str, Figure]:
    told = outcome.conclusion.ratio if outcome.conclusion is not None and outcome.gained else 1.0
    figures: dict[str, Figure] = {
        f"{name}: placement": outcome.best.name,
        f"{name}: seconds of the tune": outcome.seconds,
        f"{name}: told ratio": told,
    }
    for other, result in fresh.items():
        label = f"{name} over {other}"
        figures[label] = result.ratio
        for side in ("low", "high"):
            value = getattr(result, side)
            figures[f"{label} {side}"] = not_measured("too few rounds") if value is None else value
    return figures


def _fresh(outcome: TuneOutcome, test: Test, rounds: int, configuration: Configuration) -> dict[str, RatioResult]:
    """Each other side's time divided by the tuned settings', of interleaved rounds. Where the defaults are kept, they
    are not run beside themselves."""
    sides: dict[str, Callable[[], float]] = {"tuned": lambda: _seconds(outcome.best, test, configuration)}
    if outcome.gained:
        sides["the engine's defaults"] = lambda: _seconds(outcome.defaults, test, configuration)
    if (program := _native(configuration)) is not None:
        path = outcome.defaults.file.path
        for name, flags in (("llama-server's defaults", LLAMA_DEFAULTS), ("Ollama's flags", OLLAMA_FLAGS)):
            sides[name] = lambda flags=flags: seconds_of_server(program, path, flags, test)  # type: ignore[misc]
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            times[name].append(sides[name]())
        latest = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items())
        print(f"fresh round {number + 1}: {latest}", file=sys.stderr)
    return {name: ratio(values, times["tuned"], paired=True) for name, values in times.items() if name != "tuned"}


def _native(configuration: Configuration) -> Path | None:
    """The first llama-server program."""
    places = (Path(build.where) for build in LlamaCpp(configuration).builds())
    return next((place for place in places if place.is_absolute()), None)


def _seconds(placement: Placement, test: Test, configuration: Configuration) -> float:
    async def once() -> float:
        with workspace() as folder:
            async with open_runner(placement, folder / "runner", configuration) as runner:
                await warm_up(runner, [test])
                sample = await measure(runner, test)
                return (sample.finished_ns - sample.started_ns) / 1e9

    return asyncio.run(once())


def real_bounds(figures: dict[str, Figure], test: Test, *, builds: int) -> list[Bound]:
    """Of a workload that is nearly all prompt, 1.3 times is asked for where there is a second build to choose."""
    bounds = [Bound(name, least=1.0) for name in figures if " over " in name and name.endswith(" low")]
    bounds += [Bound(_TOLD, least=_SHARE_TOLD)] if isinstance(figures[_TOLD], float) else []
    bounds += [Bound(_SECOND, most=_SECOND_TUNE)] if isinstance(figures[_SECOND], float) else []
    if builds > 1 and test.prompt_tokens >= _PREFILL_HEAVY * test.generated_tokens:
        bounds += [Bound(name, least=_LEAST_PREFILL_HEAVY) for name in figures if name.endswith(": told ratio")]
    return bounds

import random

import pytest

from trilithon.engines.base import Placement
from trilithon.engines.scripted.engine import Script
from trilithon.measure.records import Failure, Outcome, Run, Sample, Test
from trilithon.tune.handovers import halves
from trilithon.tune.runs import TuneRuns


@pytest.fixture
def computed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the scripted engine takes no time: what it would take is computed from its script, with 4% noise, and
    stored as any run. Answers are still compared by real processes."""
    noise = random.Random(1)

    async def run(self: TuneRuns, placement: Placement, test: Test, number: int) -> Run:
        self._add(placement)
        self._tell(placement.name)
        scripts = [Script.parse(half.settings.options) for half in halves(placement)]
        first, last = scripts[0], scripts[-1]
        seconds = test.prompt_tokens / first.prefill / first.speedup
        seconds += test.generated_tokens / last.decode / last.speedup
        end = round(seconds * noise.gauss(1, 0.04) * 1e9)
        samples = (Sample(test=test, started_ns=0, finished_ns=end),)
        run_id = self._store.start_run(self._campaign, placement.name, number, 0)
        failure = None if last.crash_after is None else Failure(kind="died", message="died, as its script says")
        outcome: Outcome = "finished" if failure is None else "failed"
        if failure is None:
            self._store.add_sample(run_id, samples[0])
        self._store.finish_run(run_id, outcome, end, failure=failure)
        return Run(
            placement=placement.name,
            round=number,
            outcome=outcome,
            started_ns=0,
            finished_ns=end,
            samples=samples if failure is None else (),
            failure=failure,
        )

    monkeypatch.setattr(TuneRuns, "_run", run)

"""The runs of a tune: each a process of its own, every sample in the store; those of before a stop come from there."""

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from trilithon.bench.checks import BoardReading, settle, warnings_between
from trilithon.bench.prepare import record_of
from trilithon.bench.quality import POSITIONS_OF_ANOTHER_ENGINE, QualityReading, read_quality
from trilithon.bench.workloads import DEFAULT_QUESTION, measure, warm_up
from trilithon.board.snapshot import Board
from trilithon.engines.base import Placement
from trilithon.errors import RunError, TrilithonError
from trilithon.measure.divergence import kl_divergence
from trilithon.measure.records import Campaign, Failure, QualityRecord, Run, Sample, Test
from trilithon.measure.statistics import mean_above
from trilithon.results.store.database import Store
from trilithon.runtime.opening import open_runner
from trilithon.settings import Configuration
from trilithon.tune.handovers import halves

__all__ = ["TuneRuns"]

_SETTLE_SECONDS = 1.0
_THROTTLED = "throttled:"
MOST_THROTTLED = 3


class TuneRuns:
    """`spent_seconds` is the time of all runs, those of before a stop too; `throttled_runs` counts those
    that throttled. `known` is what the store has of the tune that goes on: its runs are answered from there, in their
    order; `new_runs` counts the others."""

    def __init__(
        self,
        store: Store,
        campaign: int,
        known: Campaign,
        board: Board,
        configuration: Configuration,
        folder: Path,
        tell: Callable[[str], None],
        quality_bound: float,
    ):
        self._quality_bound = quality_bound
        self._store, self._campaign = store, campaign
        self._board, self._configuration = board, configuration
        self._folder, self._tell = folder, tell
        self._names = {placement.name for placement in known.placements}
        self._quality = {p.name: p.quality for p in known.placements if p.quality is not None}
        whole = [run for run in known.runs if run.failure is None or run.failure.kind != "interrupted"]
        self._stored: dict[tuple[str, int], deque[Run]] = {}
        for run in whole:
            self._stored.setdefault((run.placement, run.round), deque()).append(run)
        self._folders, self._throttled = 0, 0
        self._reference: tuple[str, QualityReading] | None = None
        self.spent_seconds = 0.0
        self.throttled_runs = self.new_runs = 0

    async def seconds(self, placement: Placement, test: Test, number: int) -> float | None:
        """How long the request of `test` took by this process's own clock; None where the placement failed. Raises
        TrilithonError where the machine throttled in three new runs in a row."""
        if stored := self._stored.get((placement.name, number)):
            run, is_new = stored.popleft(), False
        else:
            run, is_new = await self._run(placement, test, number), True
        self.spent_seconds += (run.finished_ns - run.started_ns) / 1e9
        self.new_runs += is_new
        if any(warning.startswith(_THROTTLED) for warning in run.warnings):
            self._throttled += is_new
            self.throttled_runs += 1
            if self._throttled == MOST_THROTTLED:
                raise TrilithonError(
                    "the machine throttled in {count} runs in a row; cool it, and go on", count=MOST_THROTTLED
                )
        else:
            self._throttled = 0
        if run.outcome != "finished" or not run.samples:
            return None
        return (run.samples[0].finished_ns - run.samples[0].started_ns) / 1e9

    async def is_right(self, placement: Placement, reference: Placement) -> bool:
        """Whether the mean KL divergence from the reference is within the bound with the upper end of its interval. Of
        a handover, that of each half alone, as a prompt would not always go to the first; that a cache of the first
        gives the second's results is probed at each start. That of a placement that fails is not right."""
        records = [await self._record(half, reference) for half in halves(placement) if half.name != reference.name]
        if not records:  # it is the reference, spelled out
            return True
        worst = max(records, key=_wrongness)
        if placement.prefill is not None and placement.name not in self._quality:
            self._keep(placement, worst)
        return worst.verdict == "same"

    async def _record(self, placement: Placement, reference: Placement) -> QualityRecord:
        if placement.name not in self._quality:
            self._tell(f"{placement.name}: quality")
            self._keep(placement, await self._compared(placement, reference))
        return self._quality[placement.name]

    def _keep(self, placement: Placement, record: QualityRecord) -> None:
        self._add(placement)
        self._store.set_quality(self._campaign, placement.name, record)
        self._quality[placement.name] = record

    async def _compared(self, placement: Placement, reference: Placement) -> QualityRecord:
        try:
            if self._reference is None or self._reference[0] != reference.name:
                self._reference = (reference.name, await self._read(reference))
            expected, answered = self._reference[1], await self._read(placement)
        except RunError as error:
            return QualityRecord(verdict="unknown", reference=reference.name, reasons=(str(error),))
        pairs = [
            (wanted[at], measured[at])
            for wanted, measured in ((expected.prefill, answered.prefill), (expected.decode, answered.decode))
            for at in wanted
            if at in measured
        ]
        divergence = mean_above([kl_divergence(*pair) for pair in pairs])
        verdict: Literal["same", "degraded"] = "same" if divergence <= self._quality_bound else "degraded"
        return QualityRecord(verdict=verdict, reference=reference.name, positions=len(pairs), divergence=divergence)

    async def _read(self, placement: Placement) -> QualityReading:
        async with open_runner(placement, self._fresh_folder(), self._configuration, self._tell) as runner:
            return await read_quality(runner, DEFAULT_QUESTION, POSITIONS_OF_ANOTHER_ENGINE)

    async def _run(self, placement: Placement, test: Test, number: int) -> Run:
        self._add(placement)
        self._tell(placement.name)
        warnings = await settle(limit_seconds=_SETTLE_SECONDS)
        before, cpu_seconds_before = BoardReading.take(), sum(os.times()[:4])
        started_ns = time.monotonic_ns()
        run_id = self._store.start_run(self._campaign, placement.name, number, started_ns)
        folder = self._fresh_folder()
        samples: tuple[Sample, ...] = ()
        failure = None
        try:
            async with open_runner(placement, folder, self._configuration, self._tell) as runner:
                await warm_up(runner, [test])
                samples = (await measure(runner, test),)
                self._store.add_sample(run_id, samples[0])
        except RunError as error:
            failure = Failure(
                kind=error.kind, message=str(error), cause=error.cause, advice=error.advice, last_words=error.last_words
            )
        cpu_seconds = sum(os.times()[:4]) - cpu_seconds_before
        warnings += warnings_between(before, BoardReading.take(), own_cpu_seconds=cpu_seconds)
        run = Run(
            placement=placement.name,
            round=number,
            outcome="finished" if failure is None else "failed",
            started_ns=started_ns,
            finished_ns=time.monotonic_ns(),
            samples=samples,
            failure=failure,
            warnings=warnings,
        )
        self._store.finish_run(run_id, run.outcome, run.finished_ns, failure=failure, warnings=warnings)
        shutil.rmtree(folder, ignore_errors=True)
        return run

    def _add(self, placement: Placement) -> None:
        if placement.name not in self._names:
            self._store.add_placement(self._campaign, record_of(placement, self._board, None))
            self._names.add(placement.name)

    def _fresh_folder(self) -> Path:
        self._folders += 1
        return self._folder / str(self._folders)


def _wrongness(record: QualityRecord) -> float:
    return math.inf if record.divergence is None else record.divergence

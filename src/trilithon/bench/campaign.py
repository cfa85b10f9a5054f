"""A campaign: interleaved rounds of runs, each in a process of its own, every sample on disk as soon as it is made."""

import asyncio
import contextlib
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from trilithon import __version__
from trilithon.bench.checks import Reading, settle, warnings_between
from trilithon.bench.plan import Plan, in_turn, reference_placement, resolve
from trilithon.bench.quality import QualityReading, judge, read_quality
from trilithon.bench.workloads import DEFAULT_QUESTION, measure, measure_cold, warm_up
from trilithon.board.bandwidth import measure_bandwidth
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.errors import RunError, UserError
from trilithon.measure.metrics import HEADLINE, metrics_of
from trilithon.measure.records import Campaign, Failure, Outcome, PlacementRecord, QualityRecord, Run, Sample
from trilithon.measure.statistics import narrow_enough
from trilithon.models.file import ModelFile, read_model_file
from trilithon.models.hashing import Progress
from trilithon.results.compare import differences
from trilithon.results.store import Store
from trilithon.runtime.process import workspace
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

__all__ = ["Observer", "Prepared", "Step", "prepare", "run_campaign"]

FEWEST_ROUNDS = 5
MOST_ROUNDS = 30
BUDGET_SECONDS = 100.0
# A placement that failed this often in a row is not tried again in this campaign.
_FAILURES = 2
_SETTLE_FIRST_SECONDS, _SETTLE_SECONDS = 10.0, 2.0
_LOG_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happens now, for whoever watches. `runs_planned` is an estimate while the rounds are not fixed;
    `remaining_seconds` is None while nothing is known."""

    text: str
    runs_done: int
    runs_planned: int
    remaining_seconds: float | None


Observer = Callable[[Step], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan held against this machine: everything that can be refused has been."""

    plan: Plan
    board: Board
    placements: tuple[Placement, ...]
    reference: Placement
    configuration: Configuration


def prepare(plan: Plan, configuration: Configuration, progress: Progress | None = None) -> Prepared:
    """Read the files and the machine, and resolve the placements. Raises ModelError and PlacementError."""
    file = read_model_file(plan.model, configuration.cache, progress)
    other = read_model_file(plan.reference, configuration.cache, progress) if plan.reference else None
    board = read_board()
    placements = tuple(resolve(plan, file, board, configuration))
    reference = reference_placement(plan, placements, other or file, board, configuration)
    return Prepared(plan=plan, board=board, placements=placements, reference=reference, configuration=configuration)


async def run_campaign(prepared: Prepared, store: Store, observer: Observer, resume: int | None = None) -> int:
    """Measure, or go on with the campaign `resume`; returns its number in the store.

    What a placement does wrong becomes a failed run. Cancelled, it leaves the campaign "interrupted", with all
    finished samples kept and no child alive.
    """
    with workspace() as folder:
        campaign = _Campaign(prepared, store, observer, folder, resume)
        try:
            await campaign.run()
        except asyncio.CancelledError:
            store.set_status(campaign.id, "interrupted")
            raise
        store.set_status(campaign.id, "finished")
        return campaign.id


class _Campaign:
    def __init__(self, prepared: Prepared, store: Store, observer: Observer, folder: Path, resume: int | None):
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = store
        self._observer = observer
        self._folder = folder
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._failures: Counter[str] = Counter()
        self._finished: set[tuple[str, int]] = set()
        self._judged: set[str] = set()
        self._durations: list[float] = []
        self._started = time.monotonic()
        self._runs_done = 0
        self._child_cpu_seconds = 0.0
        self._run_number = 0
        self.id = self._begin() if resume is None else self._go_on(resume)

    def _begin(self) -> int:
        number = self._store.start_campaign(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            source="trilithon",
            version=__version__,
            board=self._prepared.board.facts(),
            plan=self._plan.to_json(),
        )
        self._add(number, self._prepared.placements)
        return number

    def _add(self, number: int, placements: Sequence[Placement]) -> None:
        bandwidths: dict[tuple[int, ...] | None, float] = {}
        for placement in placements:
            cpus = placement.settings.cpus
            if placement.unit == "cpu" and cpus not in bandwidths:
                bandwidths[cpus] = measure_bandwidth(cpus)
            bandwidth = bandwidths[cpus] if placement.unit == "cpu" else None
            self._store.add_placement(number, _record(placement, self._prepared.board, bandwidth))

    def _go_on(self, number: int) -> int:
        known = self._store.campaign(number)
        self._refuse_changes(known)
        self._store.set_status(number, "running")
        names = {placement.name for placement in known.placements}
        # A kill may have come before all of them were written down.
        self._add(number, [placement for placement in self._prepared.placements if placement.name not in names])
        self._judged = {placement.name for placement in known.placements if placement.quality}
        for run in known.runs:
            if run.failure is None or run.failure.kind != "interrupted":
                self._note(run)
        return number

    def _refuse_changes(self, known: Campaign) -> None:
        """Unlike things are never averaged: neither another kernel nor another file under the same name."""
        before = {placement.name: placement for placement in known.placements}
        for placement in self._prepared.placements:
            now = _record(placement, self._prepared.board, None)
            changed = differences(before.get(placement.name, now), now)
            if changed:
                raise UserError(
                    f"campaign {known.id} cannot go on: {placement.name} is not what it was ({', '.join(changed)}); "
                    f"put that back, or start anew and remove this one: trilithon results rm {known.id}"
                )

    async def run(self) -> None:
        if self._plan.quality:
            await self._judge_all()
        for number in range(self._plan.rounds or MOST_ROUNDS):
            if self._enough(number):
                return
            for placement in in_turn(self._prepared.placements, number):
                if (placement.name, number) not in self._finished and not self._spent(number):
                    await self._measure(placement, number)

    # -- rounds

    def _enough(self, rounds_done: int) -> bool:
        if self._plan.rounds is not None or rounds_done < FEWEST_ROUNDS:
            return False
        elapsed = time.monotonic() - self._started
        next_round = sum(self._durations[-len(self._prepared.placements) :])
        return elapsed + next_round > self._budget or all(
            narrow_enough(values)
            for (placement, _), values in self._values.items()
            if self._failures[placement] < _FAILURES
        )

    @property
    def _budget(self) -> float:
        return self._plan.budget_seconds or BUDGET_SECONDS

    def _spent(self, number: int) -> bool:
        """A budget that the user gave holds between runs too, but for the first round: no answer helps nobody."""
        given = self._plan.budget_seconds
        return given is not None and number > 0 and time.monotonic() - self._started > given

    async def _measure(self, placement: Placement, number: int) -> None:
        if self._failures[placement.name] >= _FAILURES:
            self._note(self._skip(placement, number))
            return
        began = time.monotonic()
        self._note(await self._run_once(placement, number))
        self._durations.append(time.monotonic() - began)

    def _skip(self, placement: Placement, number: int) -> Run:
        now = time.monotonic_ns()
        run_id = self._store.start_run(self.id, placement.name, number, now)
        self._store.finish_run(run_id, "skipped", now, warnings=(f"failed {_FAILURES} times in a row",))
        return Run(placement=placement.name, round=number, outcome="skipped", started_ns=now, finished_ns=now)

    async def _run_once(self, placement: Placement, number: int) -> Run:
        self._tell(f"{placement.name}: waiting for an idle machine")
        limit = _SETTLE_SECONDS if self._durations else _SETTLE_FIRST_SECONDS
        warnings = await settle(limit_seconds=limit)
        before, own_before = Reading.take(), self._own_cpu_seconds()
        started_ns = time.monotonic_ns()
        run_id = self._store.start_run(self.id, placement.name, number, started_ns)
        samples: list[Sample] = []
        failure: Failure | None = None
        folder = self._fresh_folder()
        try:
            async with contextlib.aclosing(self._samples(placement, folder)) as produced:
                async for sample, found in produced:
                    self._store.add_sample(run_id, sample)
                    samples.append(sample)
                    warnings += found
        except RunError as error:
            failure = failure_of(error)
        outcome: Outcome = "failed" if failure else "finished"
        warnings += warnings_between(before, Reading.take(), own_cpu_seconds=self._own_cpu_seconds() - own_before)
        finished_ns = time.monotonic_ns()
        log = _tail(folder / "log")
        self._store.finish_run(run_id, outcome, finished_ns, failure=failure, warnings=warnings, log=log)
        shutil.rmtree(folder, ignore_errors=True)
        return Run(
            placement=placement.name,
            round=number,
            outcome=outcome,
            started_ns=started_ns,
            finished_ns=finished_ns,
            samples=tuple(samples),
            failure=failure,
            warnings=warnings,
        )

    async def _samples(
        self, placement: Placement, folder: Path
    ) -> AsyncGenerator[tuple[Sample, tuple[str, ...]], None]:
        for test in self._plan.tests:
            if test.kind == "cold":
                self._tell(f"{placement.name}: cold start")
                yield await measure_cold(lambda: self._open(placement, folder), placement.file.path, test)
        warm = [test for test in self._plan.tests if test.kind != "cold"]
        if not warm:
            return
        self._tell(f"{placement.name}: loading")
        async with self._open(placement, folder) as runner:
            self._tell(f"{placement.name}: warming up")
            await warm_up(runner, warm)
            for test in warm:
                self._tell(f"{placement.name}: {test.name}")
                yield await measure(runner, test), ()

    # -- quality

    async def _judge_all(self) -> None:
        waiting = [p for p in self._prepared.placements if p.name not in self._judged]
        if not waiting:
            return
        reference = self._prepared.reference
        reading = await self._read_quality(reference)
        for placement in waiting:
            if placement is reference:
                record = self._verdict(reading, None)
            else:
                record = self._verdict(await self._read_quality(placement), reading)
            self._store.set_quality(self.id, placement.name, record)

    def _verdict(
        self, reading: QualityReading | RunError, reference: QualityReading | RunError | None
    ) -> QualityRecord:
        name = self._prepared.reference.name
        for failed in (reading, reference):
            if isinstance(failed, RunError):
                return QualityRecord(verdict="unknown", reference=name, reasons=(str(failed),))
        assert isinstance(reading, QualityReading) and not isinstance(reference, RunError)
        return judge(reading, reference, name)

    async def _read_quality(self, placement: Placement) -> QualityReading | RunError:
        self._tell(f"{placement.name}: quality")
        # The text grows request by request on top of the KV cache, which a model with a sliding window else drops.
        windowed = placement.file.sliding_window is not None
        placement = replace(placement, settings=replace(placement.settings, full_window_cache=windowed))
        try:
            async with self._open(placement, self._fresh_folder()) as runner:
                return await read_quality(runner, DEFAULT_QUESTION)
        except RunError as error:
            return error

    # -- what both need

    @contextlib.asynccontextmanager
    async def _open(self, placement: Placement, folder: Path) -> AsyncIterator[Runner]:
        configuration = self._prepared.configuration
        opened: AbstractAsyncContextManager[Runner] = Runner.open(
            engine(placement.build.engine, configuration),
            placement,
            folder,
            start_seconds=configuration.start_seconds,
            hang_seconds=configuration.hang_seconds,
        )
        async with opened as runner:
            try:
                yield runner
            finally:
                self._child_cpu_seconds += runner.process.cpu_seconds() or 0.0

    def _own_cpu_seconds(self) -> float:
        return time.process_time() + self._child_cpu_seconds

    def _fresh_folder(self) -> Path:
        self._run_number += 1
        return self._folder / str(self._run_number)

    def _note(self, run: Run) -> None:
        """Count a run that is over, measured now or before a resume."""
        self._finished.add((run.placement, run.round))
        self._runs_done += 1
        self._failures[run.placement] = self._failures[run.placement] + 1 if run.outcome == "failed" else 0
        if run.outcome == "skipped":
            self._failures[run.placement] = _FAILURES
        if run.outcome != "finished":
            return
        by_test: dict[str, list[float]] = defaultdict(list)
        for sample in run.samples:
            figures = metrics_of(sample)
            if HEADLINE[sample.test.kind] in figures:
                by_test[sample.test.name].append(figures[HEADLINE[sample.test.kind]])
        for test, values in by_test.items():
            self._values[run.placement, test].append(median(values))

    def _tell(self, text: str) -> None:
        placements = len(self._prepared.placements)
        rounds = self._plan.rounds or FEWEST_ROUNDS
        planned = max(rounds * placements, self._runs_done + 1)
        each = median(self._durations) if self._durations else None
        remaining = None if each is None else (planned - self._runs_done) * each
        if remaining is not None and self._plan.rounds is None:  # it goes on until the budget is spent, or before
            remaining = max(remaining, self._budget - (time.monotonic() - self._started))
        self._observer(Step(text=text, runs_done=self._runs_done, runs_planned=planned, remaining_seconds=remaining))


def failure_of(error: RunError) -> Failure:
    return Failure(
        kind=error.kind, message=str(error), cause=error.cause, advice=error.advice, last_words=error.last_words
    )


def _record(placement: Placement, board: Board, bandwidth: float | None) -> PlacementRecord:
    file, settings = placement.file, asdict(placement.settings)
    settings["options"] = dict(placement.settings.options)
    words = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}))
    return PlacementRecord(
        name=placement.name,
        engine=placement.build.engine,
        build=placement.build.name,
        build_version=placement.build.version,
        unit=placement.unit,
        model=_described(file),
        settings=settings,
        must_match={
            **board.must_match(),
            "build": f"{placement.build.engine} {placement.build.version}",
            "file": file.sha256,
            "settings": words,
        },
        bandwidth_bytes_per_second=bandwidth,
    )


def _described(file: ModelFile) -> Mapping[str, object]:
    return {
        "name": file.name,
        "file": file.path.name,
        "architecture": file.architecture,
        "quantization": file.quantization,
        "size_bytes": file.size_bytes,
        "parameters": file.parameters,
        "bytes_per_token": file.bytes_per_token,
        "sha256": file.sha256,
    }


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:  # the child never started
        return ""

"""A campaign: interleaved rounds of runs, each in a process of its own, every sample on disk as soon as it is made."""

import asyncio
import contextlib
import math
import os
import shutil
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from trilithon import __version__
from trilithon.bench.checks import BoardReading, settle, warnings_between
from trilithon.bench.fallback import FallbackState
from trilithon.bench.prepare import Prepared, record_of
from trilithon.bench.progress import FAILURES, MOST_ROUNDS, Observer, Pace, StoppingRule
from trilithon.bench.quality_check import QualityCheck, failed_quality
from trilithon.bench.questioning import Questioning
from trilithon.bench.recording import recording_remarks, sensor_log
from trilithon.bench.setup import in_turn
from trilithon.bench.workloads import measure, measure_cold, warm_up
from trilithon.board.bandwidth import measure_bandwidth
from trilithon.board.sensors.clock_speed import MeasuredClock, far_clocks, measure_clocks
from trilithon.board.sensors.sampler import Sampler
from trilithon.engines.base import Placement
from trilithon.engines.remote.placing import is_elsewhere
from trilithon.errors import ChildDied, EngineTimeout, Interrupted, RunError, TaintedAnswer, UserError
from trilithon.measure.questions import QuestionSet
from trilithon.measure.records import Campaign, Failure, PlacementRecord, Run, Sample, Test
from trilithon.results.compare import differences
from trilithon.results.store.database import Store
from trilithon.runtime.opening import open_runner
from trilithon.runtime.process import workspace
from trilithon.runtime.remote.measured import MeasuredRunner
from trilithon.runtime.remote.runner import RemoteRunner

__all__ = ["run_campaign"]

_SETTLE_FIRST_SECONDS, _SETTLE_SECONDS = 10.0, 2.0
_LOG_BYTES = 256 << 10


async def run_campaign(prepared: Prepared, store: Store, observer: Observer, resume: int | None = None) -> int:
    """Measure, or go on with the campaign `resume`; returns its number in the store.

    What a placement does wrong becomes a failed run. Cancelled, it leaves the campaign "interrupted", with all
    finished samples kept and no child alive. Raises Interrupted where it was cancelled before there was a campaign."""
    with workspace() as folder, Sampler() as sampler:
        tally = StoppingRule(prepared.plan, len(prepared.placements))
        fallback = FallbackState(prepared, folder / "fallback", lambda text: observer(tally.step(text)))
        try:
            prepared = await fallback.find()
        except asyncio.CancelledError:
            if resume is not None:
                raise
            raise Interrupted("stopped before anything was measured") from None
        campaign = _Campaign(prepared, store, observer, folder, sampler, fallback, resume)
        try:
            await campaign.run()
        except asyncio.CancelledError:
            store.set_status(campaign.id, "interrupted")
            raise
        store.set_status(campaign.id, "finished")
        return campaign.id


class _Campaign:
    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        observer: Observer,
        folder: Path,
        sampler: Sampler,
        fallback: FallbackState,
        resume: int | None,
    ):
        self._prepared = prepared
        self._fallback = fallback
        self._sampler = sampler
        self._store = store
        self._observer = observer
        self._folder = folder
        self._folders = 0
        self._judged: set[str] = set()
        self._answered: dict[str, list[str]] = {}
        self._pace = Pace(prepared.plan.test_seconds)
        self._clocks: tuple[MeasuredClock, ...] | None = None
        self._tally = StoppingRule(prepared.plan, len(prepared.placements))
        self.id = self._begin() if resume is None else self._go_on(resume)

    def _begin(self) -> int:
        number = self._store.start_campaign(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            source="trilithon",
            version=__version__,
            board=self._prepared.facts(),
            plan=self._prepared.plan.to_json(),
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
            self._store.add_placement(number, self._record(placement, bandwidth))

    def _go_on(self, number: int) -> int:
        known = self._store.campaign(number)
        self._refuse_changes(known)
        self._store.set_status(number, "running")
        names = {placement.name for placement in known.placements}
        # A kill may have come before all of them were written down.
        self._add(number, [placement for placement in self._prepared.placements if placement.name not in names])
        self._judged = {p.name for p in known.placements if p.quality and p.quality.verdict != "unknown"}
        self._answered = {p.name: [answer.question for answer in p.answers] for p in known.placements}
        for run in known.runs:
            if run.failure is None or run.failure.kind != "interrupted":
                self._tally.note(run)
        return number

    def _refuse_changes(self, known: Campaign) -> None:
        """Unlike things are never averaged: neither another kernel nor another file under the same name."""
        before = {placement.name: placement for placement in known.placements}
        missing = before.keys() - {placement.name for placement in self._prepared.placements}
        if missing:
            raise UserError(
                "campaign {id} cannot be resumed: {names} cannot run here any more; restore it, or start a "
                "new campaign and remove this one: trilithon results rm {id}",
                id=known.id,
                names=", ".join(sorted(missing)),
            )
        for placement in self._prepared.placements:
            now = self._record(placement, None)
            changed = differences(before.get(placement.name, now), now)
            if changed:
                raise UserError(
                    "campaign {id} cannot be resumed: {name} has changed ({names}); restore it, or start a new "
                    "campaign and remove this one: trilithon results rm {id}",
                    id=known.id,
                    name=placement.name,
                    names=", ".join(changed),
                )

    async def run(self) -> None:
        if self._prepared.plan.quality:
            await self._judge_all()
        await self._measure_rounds()
        if self._prepared.plan.questions is not None:
            await self._ask_all(self._prepared.plan.questions)

    async def _measure_rounds(self) -> None:
        for number in range(self._prepared.plan.rounds or MOST_ROUNDS):
            if self._tally.enough(number):
                return
            for placement in in_turn(self._prepared.placements, number):
                if not self._tally.is_done(placement.name, number) and not self._tally.spent(number):
                    await self._measure(placement, number)

    async def _measure(self, placement: Placement, number: int) -> None:
        if self._tally.given_up(placement.name):
            self._tally.note(self._skip(placement, number))
            return
        began = time.monotonic()
        run = await self._run_once(placement, number)
        self._tally.note(run, seconds=time.monotonic() - began)
        if run.failure is not None and self._tally.given_up(placement.name):
            reason = RunError(run.failure.message, cause=run.failure.cause, last_words=run.failure.last_words)
            reason.kind = run.failure.kind
            if reason.kind != TaintedAnswer.kind and await self._lower(placement, reason):
                self._tally.forgive(placement.name)

    async def _lower(self, placement: Placement, reason: RunError) -> Placement | None:
        """The placement with its engine's next fallback step, with which the campaign continues; None where there
        is none, or where it has measured already: samples of unlike settings are never put together."""
        if self._tally.has_measured(placement.name):
            return None
        lowered = await self._fallback.lower(placement, reason)
        if lowered is not None:
            placements = tuple(lowered if p.name == placement.name else p for p in self._prepared.placements)
            self._prepared = replace(self._prepared, placements=placements)
            self._store.change_settings(self.id, self._record(lowered, None))
        return lowered

    def _skip(self, placement: Placement, number: int) -> Run:
        now = time.monotonic_ns()
        run_id = self._store.start_run(self.id, placement.name, number, now)
        self._store.finish_run(run_id, "skipped", now, remarks=(f"failed {FAILURES} times in a row",))
        return Run(placement=placement.name, round=number, outcome="skipped", started_ns=now, finished_ns=now)

    async def _run_once(self, placement: Placement, number: int) -> Run:
        self._tell(f"{placement.name}: waiting for an idle machine")
        limit = _SETTLE_FIRST_SECONDS if self._tally.first_run else _SETTLE_SECONDS
        warnings = await settle(limit_seconds=limit)
        remarks = await self._clock_remarks(placement)
        before, own_before = BoardReading.take(), _own_cpu_seconds()
        run = Run(
            placement=placement.name, round=number, outcome="finished", started_ns=time.monotonic_ns(), finished_ns=0
        )
        run_id = self._store.start_run(self.id, run.placement, run.round, run.started_ns)
        folder = self._fresh_folder()
        samples: list[Sample] = []
        self._sampler.start()
        try:
            async with contextlib.aclosing(self._samples(placement, folder)) as produced:
                async for sample, run_remarks in produced:
                    remarks += run_remarks
                    if sample is not None:
                        self._store.add_sample(run_id, sample)
                        samples.append(sample)
        except RunError as error:
            run = replace(run, outcome="failed", failure=_failure(error))
            if isinstance(error, TaintedAnswer):
                record = failed_quality(error, self._prepared.reference_of(placement).name)
                self._store.set_quality(self.id, placement.name, record)
        except asyncio.CancelledError:
            failure = Failure(kind="interrupted", message="stopped by the user")
            self._store.finish_run(
                run_id,
                "failed",
                time.monotonic_ns(),
                failure=failure,
                warnings=warnings,
                remarks=remarks,
                log="\n".join(_logs(placement, folder)),
            )
            raise
        finally:
            recording = self._sampler.stop()
        # A server's CPU time cannot be told from that of other programs.
        own_cpu_seconds = math.inf if placement.unit == "server" else _own_cpu_seconds() - own_before
        warnings += warnings_between(before, BoardReading.take(), own_cpu_seconds=own_cpu_seconds, recording=recording)
        logs = _logs(placement, folder)
        remarks += (*recording_remarks(recording), *self._fallback.remarks(placement, logs))
        run = replace(run, finished_ns=time.monotonic_ns(), samples=tuple(samples), warnings=warnings, remarks=remarks)
        self._store.finish_run(
            run_id,
            run.outcome,
            run.finished_ns,
            failure=run.failure,
            warnings=run.warnings,
            remarks=run.remarks,
            log="\n".join(logs),
            sensor_log=None if is_elsewhere(placement) else sensor_log(recording),
        )
        shutil.rmtree(folder, ignore_errors=True)  # the whole workspace goes at the end in any case
        return run

    async def _clock_remarks(self, placement: Placement) -> tuple[str, ...]:
        """Where the CPUs' clocks are far from what the kernel claims. They are measured once, on the idle machine."""
        if self._clocks is None:
            try:
                self._clocks = await asyncio.to_thread(measure_clocks, self._prepared.board.clusters)
            except UserError as error:  # this system allows no measurement, which says nothing about its clocks
                self._tell(str(error))
                self._clocks = ()
        return far_clocks(self._clocks) if placement.unit == "cpu" else ()

    async def _samples(
        self, placement: Placement, folder: Path
    ) -> AsyncGenerator[tuple[Sample | None, tuple[str, ...]], None]:
        """A sample and remarks per test. A test that this placement cannot do gives a remark alone, and costs the
        others nothing, as long as the child lives; where none can be done, the last error is raised."""
        for test in self._prepared.plan.tests:
            if test.kind == "cold":
                yield await self._cold(placement, folder, test)
        warm = [test for test in self._prepared.plan.tests if test.kind != "cold"]
        if not warm:
            return
        self._tell(f"{placement.name}: loading")
        async with self._open(placement, folder) as runner:
            self._tell(f"{placement.name}: warming up")
            await warm_up(runner, warm)
            error: RunError | None = None
            done = 0
            for test in warm:
                try:
                    sample = await self._sample(runner, test)
                except RunError as caught:
                    if isinstance(caught, EngineTimeout | ChildDied | TaintedAnswer):
                        raise
                    error = caught
                    yield None, (f"{test.name} not measured: {str(caught).removeprefix(f'{test.name}: ')}",)
                else:
                    done += 1
                    yield sample, ()
            if runner.notices:
                yield None, runner.notices
            if error is not None and not done:
                raise error

    async def _sample(self, runner: MeasuredRunner, test: Test) -> Sample:
        objection = self._pace.objection(runner.placement, test)
        if objection:
            raise RunError(objection)
        self._tell(f"{runner.placement.name}: {test.name}")
        began = time.monotonic()
        sample = await measure(runner, test)
        self._pace.note(runner.placement, test, time.monotonic() - began)
        return sample

    async def _cold(self, placement: Placement, folder: Path, test: Test) -> tuple[Sample | None, tuple[str, ...]]:
        if placement.unit == "server":
            return None, ("cold not measured: the server is already started",)
        self._tell(f"{placement.name}: cold start")
        return await measure_cold(lambda: self._open(placement, folder), placement.file.path, test)

    async def _judge_all(self) -> None:
        waiting = [p for p in self._prepared.placements if p.name not in self._judged]
        if not waiting:
            return
        references = {one.name: one for one in map(self._prepared.reference_of, waiting)}
        for name, reference in references.items():
            compared = [placement for placement in waiting if self._prepared.reference_of(placement).name == name]
            judging = QualityCheck(reference, lambda p: self._open(p, self._fresh_folder()), self._lower, self._tell)
            async with contextlib.aclosing(judging.of(compared)) as judged:
                async for placement, record in judged:
                    self._store.set_quality(self.id, placement.name, record)

    async def _ask_all(self, questions: QuestionSet) -> None:
        """After the rounds, so that the time they may take is theirs; not where the placement failed in them."""
        questioning = Questioning(questions, lambda placement: self._open(placement, self._fresh_folder()), self._tell)
        for placement in self._prepared.placements:
            if not self._tally.given_up(placement.name):
                answers = questioning.answers(placement, self._answered.get(placement.name, ()))
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        self._store.add_answer(self.id, placement.name, answer)

    def _open(self, placement: Placement, folder: Path) -> AbstractAsyncContextManager[MeasuredRunner]:
        if placement.unit == "server":
            return RemoteRunner.open(placement, hang_seconds=self._prepared.configuration.hang_seconds)
        return open_runner(placement, folder, self._prepared.configuration, self._tell)

    def _record(self, placement: Placement, bandwidth: float | None) -> PlacementRecord:
        return record_of(placement, self._prepared.board, bandwidth, self._prepared.pinned)

    def _fresh_folder(self) -> Path:
        self._folders += 1
        return self._folder / str(self._folders)

    def _tell(self, text: str) -> None:
        self._observer(self._tally.step(text))


def _own_cpu_seconds() -> float:
    """CPU time of Trilithon and of its children that have ended, crashed ones too, so that others' can be told from
    it."""
    return sum(os.times()[:4])


def _failure(error: RunError) -> Failure:
    return Failure(
        kind=error.kind, message=str(error), cause=error.cause, advice=error.advice, last_words=error.last_words
    )


def _logs(placement: Placement, folder: Path) -> tuple[str, ...]:
    """What its child wrote; of a handover the prefiller's first."""
    log = _tail(folder / "log")
    return (log,) if placement.prefill is None else (_tail(folder / "prefill" / "log"), log)


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:  # the child never started
        return ""

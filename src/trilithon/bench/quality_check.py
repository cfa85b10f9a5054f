"""Every placement's answers compared with the reference's, before the rounds begin."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Literal

from trilithon.bench.quality import QualityReading, decode_positions, judge, not_judged, read_quality
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.engines.base import Placement
from trilithon.errors import RunError, TaintedAnswer
from trilithon.measure.records import QualityRecord
from trilithon.runtime.remote.measured import MeasuredRunner

__all__ = ["QualityCheck", "failed_quality"]


class QualityCheck:
    """`lower` gives a placement safer settings, or None where there are none; `tell` says what happens now."""

    def __init__(
        self,
        reference: Placement,
        open_runner: Callable[[Placement], AbstractAsyncContextManager[MeasuredRunner]],
        lower: Callable[[Placement, RunError], Awaitable[Placement | None]],
        tell: Callable[[str], None],
    ):
        self._reference = reference
        self._open = open_runner
        self._lower = lower
        self._tell = tell

    async def of(self, placements: Sequence[Placement]) -> AsyncGenerator[tuple[Placement, QualityRecord], None]:
        """A record for each: "unknown" with the reason where a side could not be read."""
        if self._reference.file.synthetic:
            record = not_judged(self._reference.name)
            self._tell(record.reasons[0])
            for placement in placements:
                yield placement, record
            return
        # Those of the first placements are among those that the others need.
        most = max((decode_positions(placement, self._reference) for placement in placements), default=0)
        reading = await self._read(self._reference, most)
        own = self._verdict(reading, None)
        if own.verdict == "broken":
            reading = RunError(f"{self._reference.name}, the reference, is itself broken: {'; '.join(own.reasons)}")
        for placement in placements:
            if placement is self._reference:
                yield placement, own
            elif isinstance(reading, RunError):
                yield placement, self._verdict(reading, None)
            else:
                yield placement, await self._judged_or_lowered(placement, reading)

    async def _judged_or_lowered(self, placement: Placement, reference: QualityReading) -> QualityRecord:
        """A placement that is broken, or breaks down, gets one more chance with safer settings."""
        reading = await self._read(placement)
        record = self._verdict(reading, reference)
        if record.verdict != "broken" and not isinstance(reading, RunError):
            return record
        failed = RunError("; ".join(record.reasons), cause="called broken by the quality check")
        lowered = await self._lower(placement, reading if isinstance(reading, RunError) else failed)
        return self._verdict(await self._read(lowered), reference) if lowered else record

    def _verdict(self, reading: QualityReading | RunError, reference: QualityReading | None) -> QualityRecord:
        if isinstance(reading, RunError):
            return failed_quality(reading, self._reference.name)
        return judge(reading, reference, self._reference.name)

    async def _read(self, placement: Placement, by_decode: int = 0) -> QualityReading | RunError:
        self._tell(f"{placement.name}: quality")
        # The text grows request by request on top of the KV cache, which a model with a sliding window else drops.
        windowed = placement.file.sliding_window is not None
        placement = replace(placement, settings=replace(placement.settings, full_window_cache=windowed))
        try:
            async with self._open(placement) as runner:
                count = by_decode or decode_positions(placement, self._reference)
                return await read_quality(runner, DEFAULT_QUESTION, count)
        except RunError as error:
            return error


def failed_quality(error: RunError, reference: str) -> QualityRecord:
    """The quality of a placement that failed: broken where it answered while its unit failed, else unknown."""
    verdict: Literal["broken", "unknown"] = "broken" if isinstance(error, TaintedAnswer) else "unknown"
    return QualityRecord(verdict=verdict, reference=reference, reasons=(str(error),))

"""The board's sensors for those who ask now and then: read when asked, once a second at most, and not waited for long.

Nothing is read between two questions: a sensor costs the board a little each time."""

import asyncio
import time

from trilithon.board.sensors.probes import Reading
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.sensors import readings
from trilithon.board.sysfs import THIS_MACHINE, Machine

__all__ = ["BoardReadings"]

_LEAST_SECONDS = 1.0
# All files together take milliseconds, looking for them the first time a little longer.
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.01
_NO_SECOND_FRAME_SECONDS = 3600.0


class BoardReadings:
    """For one event loop. A file that does not answer is left out from the next time on."""

    def __init__(self, machine: Machine = THIS_MACHINE):
        self._sampler = Sampler(machine, period_seconds=_NO_SECOND_FRAME_SECONDS, whole_frames=True)
        self._one_at_a_time = asyncio.Lock()
        self._at: float | None = None
        self._found: tuple[Reading, ...] = ()

    async def now(self) -> tuple[Reading, ...]:
        async with self._one_at_a_time:
            if self._at is None or time.monotonic() - self._at >= _LEAST_SECONDS:
                self._found = await asyncio.to_thread(self._read)
                self._at = time.monotonic()
            return self._found

    def _read(self) -> tuple[Reading, ...]:
        sampler = self._sampler
        sampler.start()
        until = time.monotonic() + _PATIENCE_SECONDS
        while sampler.latest is None and not sampler.blind and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        recording = sampler.stop()
        # The first frame: its CPU load is the one since the last time asked, that of the next is of milliseconds.
        return readings(recording.channels, recording.frames[0]) if recording.frames else ()

"""What a live view stands on: the newest frame of a sampler, and the one before it."""

import time

from trilithon.board.sensors.probes import Channel, Reading
from trilithon.board.sensors.sampler import Sampler
from trilithon.board.sensors.sensors import Frame

__all__ = ["Window"]

# Longer without a frame, and a file does not answer: the sampler is asked to go on without it.
_STALE_SECONDS = 3.0


class Window:
    """The newest frame and the one before it: energy counters become watts between the two."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler
        self._before: Frame | None = None
        self._now: Frame | None = None
        self._seen = time.monotonic()
        self.hung = ""

    @property
    def closed(self) -> tuple[str, ...]:
        return self._sampler.closed

    @property
    def can_see(self) -> bool:
        """False when even the search for sensors met one that does not answer."""
        return not self._sampler.blind

    @property
    def at_ns(self) -> int | None:
        return self._now.at_ns if self._now else None

    def wait(self, period_seconds: float) -> None:
        """Until there is a new frame, or none came for so long that a file is given up. The first one is not shown:
        load and energy need two."""
        while not self.look():
            time.sleep(period_seconds / 5)

    def look(self) -> bool:
        """Whether there is something new to show."""
        latest = self._sampler.latest
        if latest is None or latest is self._now:
            return self._given_up()
        self._before, self._now, self._seen = self._now, latest, time.monotonic()
        return self._before is not None

    def _given_up(self) -> bool:
        if time.monotonic() - self._seen < _STALE_SECONDS:
            return False
        self.hung = self._sampler.stop().hung or self.hung
        self._sampler.start()
        self._before, self._now, self._seen = None, None, time.monotonic()
        return True

    def readings(self) -> list[Reading]:
        """What there is now. Of an energy counter the mean power since the frame before."""
        if self._now is None:
            return []
        values = []
        for place, channel in enumerate(self._sampler.channels):
            value = self._now.values[place]
            if channel.quantity == "energy":
                value = self._watts(place)
                channel = Channel("power", channel.name, channel.source)
            if value is not None:
                values.append(channel.reading(value))
        return values

    def _watts(self, place: int) -> float | None:
        if self._now is None or self._before is None:
            return None
        now, before = self._now.values[place], self._before.values[place]
        seconds = (self._now.at_ns - self._before.at_ns) / 1e9
        return None if now is None or before is None or seconds <= 0 else (now - before) / seconds

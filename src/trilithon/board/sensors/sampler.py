"""Readings taken in a thread of its own while something is measured, on the bench's clock (`time.monotonic_ns`).

A file that does not answer holds up this thread alone: it is left behind, and the next recording does without it."""

import os
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from trilithon.board.sensors.probes import Channel
from trilithon.board.sensors.sensors import Frame, Overtaken, Sensors
from trilithon.board.sysfs import THIS_MACHINE, Machine

__all__ = ["PERIOD_SECONDS", "Recording", "Sampler"]

PERIOD_SECONDS = 0.25
# Four and a half hours at 4 Hz; of a longer run the end is kept.
_MOST_FRAMES = 1 << 16
# How long a last frame may take. All files of a board together take a few milliseconds.
_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Frames in the order of time. `hung` is the file that did not answer, or empty."""

    channels: tuple[Channel, ...] = ()
    frames: tuple[Frame, ...] = ()
    hung: str = ""


class Sampler:
    """A context manager. `start` and `stop` enclose what is to be recorded, any number of times.

    What moves slowly is read with the first frame, each fourth and the last, with `whole_frames` with each. One that is
    due before the last one is done is left out. With `each_cpu` there is the load of each CPU too. `blind` is true once
    the search for sensors itself met a file that does not answer: there will be no readings then."""

    def __init__(
        self,
        machine: Machine = THIS_MACHINE,
        *,
        period_seconds: float = PERIOD_SECONDS,
        whole_frames: bool = False,
        each_cpu: bool = False,
        most_frames: int = _MOST_FRAMES,
    ):
        self._machine = machine
        self._each_cpu = each_cpu
        self._whole = whole_frames
        self._period_ns = round(period_seconds * 1e9)
        self._sensors: Sensors | None = None
        self._thread: threading.Thread | None = None
        self._stopping = -1
        self._most_frames = most_frames
        self._frames: deque[Frame] = deque(maxlen=most_frames)
        self.blind = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        if self._sensors is not None:
            self._sensors.close()
            self._sensors = None

    @property
    def channels(self) -> tuple[Channel, ...]:
        return self._sensors.channels if self._sensors else ()

    @property
    def closed(self) -> tuple[str, ...]:
        """The files that there are and that this user may not read."""
        return tuple(self._sensors.closed) if self._sensors else ()

    @property
    def latest(self) -> Frame | None:
        frames = self._frames
        return frames[-1] if frames else None

    def start(self) -> None:
        """Returns at once; the first frame follows when the sensors are found."""
        if self.blind or self._thread is not None:
            return
        # Waiting for a descriptor takes half the time of waiting for a threading.Event.
        self._stopping, self._frames = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), deque(maxlen=self._most_frames)
        # A daemon: one that a file holds for ever must not keep the program from ending.
        self._thread = threading.Thread(
            target=self._sample, args=(self._stopping, self._frames), name="sensors", daemon=True
        )
        self._thread.start()

    def stop(self) -> Recording:
        """Takes a last frame and gives all since `start`. Waits at most half a second."""
        if self._thread is None:
            return Recording()
        os.eventfd_write(self._stopping, 1)
        self._thread.join(_PATIENCE_SECONDS)
        hung = ""
        if self._thread.is_alive():
            hung = self._leave_behind()  # with its descriptor, which it may still look at
        else:
            os.close(self._stopping)
        frames, self._thread, self._frames = tuple(self._frames), None, deque()
        return Recording(channels=self.channels, frames=frames, hung=hung)

    def _leave_behind(self) -> str:
        if self._sensors is None:
            self.blind = True
            return "one of the sensors"
        return self._sensors.give_up()

    def _sample(self, stopping: int, frames: deque[Frame]) -> None:
        if self._sensors is None:
            self._sensors = Sensors(self._machine, each_cpu=self._each_cpu)
        sensors, due_ns = self._sensors, time.monotonic_ns()
        bell = select.poll()
        bell.register(stopping, select.POLLIN)
        try:
            stopped = bell.poll(0)
            while not stopped:
                frames.append(sensors.read(whole=self._whole or not frames))
                due_ns = max(due_ns + self._period_ns, time.monotonic_ns())
                stopped = bell.poll(max(due_ns - time.monotonic_ns(), 0) / 1e6)
            frames.append(sensors.read())
        except Overtaken:
            return

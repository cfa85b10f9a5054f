"""What is looked up only when the metrics are read: the pool's figures, and the readings of the board."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from trilithon.board.sensors.probes import Reading
from trilithon.runtime.handover_state import HandoverState

__all__ = ["PoolFigures", "Scrape"]

_READINGS = {
    "temperature": ("trilithon_temperature_celsius", "Temperature by sensor"),
    "clock": ("trilithon_clock_hertz", "Clock by unit"),
    "load": ("trilithon_load_ratio", "Load by unit, from 0 to 1; of CPUs since the last scrape"),
    "memory": ("trilithon_memory_bytes", "Memory of the machine by kind"),
    "power": ("trilithon_power_watts", "Power by meter"),
}
_POOL = {
    "loads": ("trilithon_loads", "Models loaded"),
    "unloads": ("trilithon_unloads", "Models unloaded"),
    "crashes": ("trilithon_crashes", "Runners that died"),
    "failed_loads": ("trilithon_failed_loads", "Loads that failed"),
    "load_seconds": ("trilithon_load_seconds", "Time that loads took"),
    "evictions": ("trilithon_evictions", "Models unloaded to make room"),
}


class LoadedFigures(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def users(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def handover(self) -> HandoverState | None: ...


class PoolFigures(Protocol):
    """The part of the pool (`runtime.pool`) that is counted."""

    @property
    def loads(self) -> int: ...
    @property
    def unloads(self) -> int: ...
    @property
    def crashes(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def failed_loads(self) -> int: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def waiting(self) -> int: ...
    def loaded(self) -> Sequence[LoadedFigures]: ...


class Scrape:
    """A collector for one answer: what was counted all along, and what is so now. `name_of` keeps the number of
    models' names bounded."""

    def __init__(
        self,
        counted: CollectorRegistry,
        pool: PoolFigures | None,
        readings: Sequence[Reading],
        name_of: Callable[[str], str],
    ):
        self._counted = counted
        self._pool = pool
        self._readings = readings
        self._name_of = name_of

    def collect(self) -> Iterator[Metric]:
        yield from self._counted.collect()
        if self._pool is not None:
            yield from _pool_metrics(self._pool, self._name_of)
        yield from _board_metrics(self._readings)


def _pool_metrics(pool: PoolFigures, name_of: Callable[[str], str]) -> Iterator[Metric]:
    for attribute, (name, help_text) in _POOL.items():
        yield CounterMetricFamily(name, help_text, value=getattr(pool, attribute))
    yield GaugeMetricFamily("trilithon_queue_length", "Waiting requests", value=pool.waiting)
    at_work: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    states: dict[str, int] = defaultdict(int)
    active: dict[str, int] = defaultdict(int)
    misses: dict[str, int] = defaultdict(int)
    for model in pool.loaded():
        at_work[name_of(model.key)] += model.users
        sizes[name_of(model.key)] += model.size_bytes
        states[model.state] += 1
        if model.handover is not None:
            active[name_of(model.key)] += model.handover.state == "active"
            misses[name_of(model.key)] += model.handover.misses
    yield _by("trilithon_models_loaded", "Loaded models", "state", states)
    yield _by("trilithon_model_users", "Running requests by model", "model", at_work)
    yield _by("trilithon_model_size_bytes", "Memory by model", "model", sizes)
    yield _by("trilithon_handover_active", "1 while a handover is active, 0 while it is paused or off", "model", active)
    yield _by("trilithon_handover_misses", "Transferred KV caches that the decoder did not use", "model", misses)


def _by(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _board_metrics(readings: Sequence[Reading]) -> Iterator[Metric]:
    for quantity, (name, help_text) in _READINGS.items():
        matching = [reading for reading in readings if reading.quantity == quantity]
        if matching:
            family = GaugeMetricFamily(name, help_text, labels=("sensor",))
            for measured in matching:
                family.add_metric((measured.name,), measured.value)
            yield family
    meters = [reading for reading in readings if reading.quantity == "energy"]
    if meters:
        energy = CounterMetricFamily("trilithon_energy_joules", "Energy by meter", labels=("sensor",))
        for meter in meters:
            energy.add_metric((meter.name,), meter.value)
        yield energy

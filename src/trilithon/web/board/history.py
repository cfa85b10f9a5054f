"""Which values of the last minutes stand together in a chart. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trilithon.board.sensors.probes import PLAUSIBLE, Quantity
from trilithon.web.board.readings import Moment
from trilithon.web.texts import Texts

__all__ = ["MOST_LINES", "HistoryChart", "HistoryLine", "charts"]

MOST_LINES = 6
"""That can be told apart in one chart."""

_MOST_POINTS = 150
_WARM_CELSIUS = 100.0
_CLUSTER = re.compile(r"cpu\d+[-,][\d,-]+", re.ASCII)
_NPU_CORE = "NPU core "
_KINDS = {"anonymous": "anonymous", "DMA buffers": "dma_buffers", "page cache": "page_cache", "free": "free"}

_Names = Mapping[Quantity, Sequence[str]]
# A line's name, and what gives its value.
_Wanted = tuple[str, Callable[[Moment], float | None]]


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """`points` are seconds ago and values, in the order of time."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class HistoryChart:
    """`key` is the text that names it, `quantity` what `words.figure` takes, `top` the upper edge, over 0."""

    key: str
    quantity: str
    lines: tuple[HistoryLine, ...]
    top: float


def charts(moments: Sequence[Moment], text: Texts, *, memory_bytes: float | None = None) -> tuple[HistoryChart, ...]:
    """Those for which there are values."""
    if not moments:
        return ()
    names = _names(moments)
    all_charts = [
        _chart("load", "load", _loads(names), moments, 1.0),
        _chart("temperature", "temperature", _all("temperature", names), moments, _WARM_CELSIUS),
        _chart("memory", "memory", _memory(text, names), moments, memory_bytes),
        _chart("memory_clock", "clock", _some("clock", ("memory",), names, text("board.memory")), moments, None),
        _chart("power", "power", _all("power", names), moments, None),
        _chart("requests", "requests", _requests(text), moments, None),
    ]
    return tuple(chart for chart in all_charts if chart.lines)


def _names(moments: Sequence[Moment]) -> _Names:
    """Those that there are now, then those that there were."""
    names: dict[Quantity, list[str]] = {}
    for quantity, name in dict.fromkeys((*moments[-1].values, *moments[0].values)):
        names.setdefault(quantity, []).append(name)
    return names


def _loads(names: _Names) -> list[_Wanted]:
    """Of the clusters, the GPU and the NPU; of single CPUs only where there are no clusters."""
    own = [name for name in names.get("load", ()) if name.startswith("cpu")]
    clusters = [name for name in own if _CLUSTER.fullmatch(name)]
    return [*_some("load", clusters or own, names), *_some("load", ("GPU", "NPU"), names), *_npu(names)]


def _npu(names: _Names) -> list[_Wanted]:
    """The mean of its cores."""
    cores = [name for name in names.get("load", ()) if name.startswith(_NPU_CORE)]

    def mean(moment: Moment) -> float | None:
        known = [value for name in cores if (value := _plausible(moment, "load", name)) is not None]
        return sum(known) / len(known) if known else None

    return [("NPU", mean)] if cores else []


def _memory(text: Texts, names: _Names) -> list[_Wanted]:
    return [line for kind, key in _KINDS.items() for line in _some("memory", (kind,), names, text(f"board.{key}"))]


def _requests(text: Texts) -> list[_Wanted]:
    return [
        (text("board.line_running"), lambda moment: float(moment.running)),
        (text("board.line_waiting"), lambda moment: float(moment.waiting)),
    ]


def _all(quantity: Quantity, names: _Names) -> list[_Wanted]:
    return _some(quantity, names.get(quantity, ()), names)


def _some(quantity: Quantity, wanted: Sequence[str], names: _Names, title: str = "") -> list[_Wanted]:
    def of(name: str) -> Callable[[Moment], float | None]:
        return lambda moment: _plausible(moment, quantity, name)

    return [(title or name, of(name)) for name in wanted if name in names.get(quantity, ())]


def _plausible(moment: Moment, quantity: Quantity, name: str) -> float | None:
    value = moment.values.get((quantity, name))
    least, most = PLAUSIBLE[quantity]
    return value if value is not None and least <= value <= most else None


def _chart(
    key: str, quantity: str, wanted: Sequence[_Wanted], moments: Sequence[Moment], top: float | None
) -> HistoryChart:
    now_ns = moments[-1].at_ns
    step = -(-len(moments) // _MOST_POINTS)
    kept = moments[::-step][::-1]  # the newest is among them
    lines = []
    for name, value_of in wanted[:MOST_LINES]:
        values = (((now_ns - moment.at_ns) / 1e9, value_of(moment)) for moment in kept)
        points = tuple((ago, value) for ago, value in values if value is not None)
        if points:
            lines.append(HistoryLine(name, points))
    highest = max((value for line in lines for _, value in line.points), default=0.0)
    return HistoryChart(key, quantity, tuple(lines), max(top, highest) if top else _round_up(highest))


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 4, 6, 8, 10, 20, …"""
    step = 1.0
    while True:
        for factor in (1, 2, 3, 4, 6, 8):
            if step * factor >= value:
                return step * factor
        step *= 10

"""The rows of the atlas that suit a query, what its filters offer, and the bars of its chart. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from trilithon.estimate.rows import Measurement, why_dropped
from trilithon.estimate.sizes import size_named
from trilithon.web.atlas.query import FILTERS, AtlasQuery

__all__ = ["MOST_BARS", "PAGE_SIZE", "AtlasBar", "AtlasScreen", "screen_of"]

PAGE_SIZE = 50
MOST_BARS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasBar:
    """The measurements of one model, machine, engine and quantisation: their median, lowest and highest in tokens per
    second. `label` says what the filters leave open."""

    label: str
    unit: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasScreen:
    """`rows` are those of the page, `total` counts all; `choices` are what each filter offers beside the others;
    `groups` counts the bars that there would be without a limit."""

    query: AtlasQuery
    rows: Sequence[Measurement] = ()
    total: int = 0
    choices: Mapping[str, Sequence[str]]
    bars: Sequence[AtlasBar] = ()
    groups: int = 0

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // PAGE_SIZE))


def screen_of(measurements: Sequence[Measurement], query: AtlasQuery) -> AtlasScreen:
    rows = [row for row in measurements if _suits(row, query)]
    choices = {
        name: sorted({_value(row, name) for row in measurements if _suits(row, query, but=name)}, key=str.casefold)
        for name in FILTERS
    }
    query = query.with_changes(page=min(query.page, max(0, -(-len(rows) // PAGE_SIZE) - 1)))
    bars = _bars(rows, query)
    return AtlasScreen(
        query=query,
        rows=rows[query.page * PAGE_SIZE : (query.page + 1) * PAGE_SIZE],
        total=len(rows),
        choices=choices,
        bars=bars[:MOST_BARS],
        groups=len(bars),
    )


def _suits(row: Measurement, query: AtlasQuery, but: str = "") -> bool:
    wanted = ((name, getattr(query, name)) for name in FILTERS if name != but)
    return all(not value or _value(row, name).casefold() == value.casefold() for name, value in wanted)


def _value(row: Measurement, name: str) -> str:
    if name == "model":
        return _model(row.model, row.params_b)
    return row.machine if name == "chip" else row.engine.split()[0]


@cache
def _model(name: str, billions: float | None) -> str:
    """Names of one model are one choice."""
    size = size_named(name, billions)
    return size.key if size is not None else name.lower()


def _bars(rows: Sequence[Measurement], query: AtlasQuery) -> list[AtlasBar]:
    """The fastest first."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        speed = row.decode_tps if query.figure == "decode" else row.prefill_tps
        if speed and not why_dropped(row):
            opened = tuple("" if getattr(query, name) else _value(row, name) for name in FILTERS)
            groups[(*opened, row.quant, row.unit)].append(speed)
    bars = [
        AtlasBar(
            label=" · ".join(part for part in (*names, quant) if part),
            unit=unit if unit in ("cpu", "gpu", "npu") else "other",
            value=median(speeds),
            low=min(speeds),
            high=max(speeds),
            count=len(speeds),
        )
        for (*names, quant, unit), speeds in groups.items()
    ]
    return sorted(bars, key=lambda bar: (-bar.value, bar.label))

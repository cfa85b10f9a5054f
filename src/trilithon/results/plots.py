"""Which charts a set of results has, and what each of them says.

A bar chart per test, a line chart wherever a length or the depth varies. A placement without a result keeps its
place with the reason in it: what failed is shown, never dropped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from io import StringIO
from itertools import count
from pathlib import Path

import matplotlib

from trilithon.measure.metrics import HEADLINE, METRICS
from trilithon.measure.records import Test
from trilithon.results.charts import STYLE, Bar, Chart, Line, bar_chart, line_chart
from trilithon.results.compare import Estimate, Row
from trilithon.results.table import failure_text, interval_text
from trilithon.units import format_number

__all__ = ["as_svg", "figures", "write_pngs"]

_USUAL = ("pp512", "tg128", "pp512+tg128")  # the tests that llama-bench's published tables show
_VARIES = {
    "prompt_tokens": "prompt tokens",
    "generated_tokens": "generated tokens",
    "depth": "tokens already in context",
}
_UNIT = re.compile(r"/(cpu|gpu|npu)\b")
_IN_WORDS = {"tokens/s": "tokens per second", "words/s": "words per second", "s": "seconds"}
_QUESTION = "total_seconds", "words_per_second"


def figures(rows: Sequence[Row], *, source: str = "") -> dict[str, Chart]:
    """Every chart that these rows fill, by a name fit for a file. `source` is written at the foot of each."""
    several = len({row.model for row in rows}) > 1
    named = [replace(row, placement=f"{row.placement} · {row.model}") if several else row for row in rows]
    foot = (source,) if source else ()
    charts: dict[str, Chart] = {}
    for name, chart in _charts(named, foot):
        chart.name = next(
            free for number in count(1) if (free := f"{name}-{number}" if number > 1 else name) not in charts
        )
        charts[chart.name] = chart
    return charts


def _charts(rows: Sequence[Row], foot: tuple[str, ...]) -> Iterator[tuple[str, Chart]]:
    for kind in METRICS:
        of_kind = [row for row in rows if row.test.kind == kind]
        if kind == "question":
            yield from _question_charts(of_kind, foot)
        elif kind == "cold":
            for metric in METRICS[kind]:
                yield from _bar_charts([row for row in of_kind if row.metric == metric], foot)
        else:
            headline = [row for row in of_kind if row.metric.name == HEADLINE[kind]]
            lines = list(_groups(headline))
            yield from _bar_charts(_for_bars(headline, [test for _, tests in lines for test in tests]), foot)
            for field, tests in lines:
                yield _lines(field, [row for row in headline if row.test in tests], foot)


def _for_bars(rows: Sequence[Row], in_lines: Sequence[Test]) -> list[Row]:
    """Tests that a line chart shows need no bars, but for the usual one (or the first)."""
    tests = list(dict.fromkeys(row.test for row in rows))
    first = next((test for test in tests if test.name in _USUAL), tests[0] if tests else None)
    return [row for row in rows if row.test == first or row.test not in in_lines]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Test]]]:
    """Tests that differ in one thing only, with the name of that field."""
    tests = list(dict.fromkeys(row.test for row in rows))
    for field in _VARIES:
        alike: dict[Test, list[Test]] = {}
        for test in tests:
            alike.setdefault(replace(test, **{field: 0}), []).append(test)  # type: ignore[arg-type]
        yield from ((field, group) for group in alike.values() if len(group) > 1)


def _bar_charts(rows: Sequence[Row], foot: tuple[str, ...]) -> Iterator[tuple[str, Chart]]:
    for test in dict.fromkeys(row.test for row in rows):
        shown = _ranked([row for row in rows if row.test == test])
        metric = shown[0].metric
        title = f"{metric.title}, {test.name}" if test.kind in ("pp", "tg", "pg") else metric.title
        name = _slug(f"{metric.title} {'' if test.kind == 'cold' else test.name}")
        yield name, bar_chart(title, _subtitle(shown[0]), [_bar(row) for row in shown], _foot(shown, foot))
        known = sorted((row for row in shown if row.fraction_of_bandwidth), key=_by_fraction)
        if known:
            rest = [row for row in shown if not row.fraction_of_bandwidth]
            yield _slug(f"bandwidth {test.name}"), _bandwidth_chart(test, [*known, *rest], foot)


def _by_fraction(row: Row) -> float:
    return -(row.fraction_of_bandwidth or 0)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first, then the broken, then those without a result."""

    def rank(row: Row) -> tuple[bool, bool, float]:
        median = row.estimate.median if row.estimate else 0.0
        return row.estimate is None, _is_broken(row), -median if row.metric.higher_is_better else median

    return sorted(rows, key=rank)


def _is_broken(row: Row) -> bool:
    return row.quality is not None and row.quality.verdict == "broken"


def _bar(row: Row, *parts: float, aside: str = "") -> Bar:
    """The bar of this figure; `parts` where it is made up of several."""
    blank = _blank(row)
    if row.estimate is None:
        return replace(blank, note=failure_text(row))
    estimate = row.estimate
    return replace(
        blank,
        parts=parts or (estimate.median,),
        interval=_interval(estimate),
        values=row.values,
        number=format_number(estimate.median),
        aside=f"({interval_text(estimate)}){aside}",
    )


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _blank(row: Row) -> Bar:
    """Name and colour, and beside the name what a reader must not miss: a wrong answer, runs that failed."""
    tags: list[str] = [row.quality.verdict] if row.quality and row.quality.verdict in ("degraded", "broken") else []
    if row.estimate and row.note:
        tags.append(row.note.split(":")[0])
    return Bar(label=row.placement, unit=_unit(row.placement), tag=", ".join(tags), broken=_is_broken(row))


def _unit(placement: str) -> str:
    """The unit in a placement's name; two of them are a handover."""
    units = _UNIT.findall(placement)
    return "handover" if len(units) > 1 else units[0] if units else "other"


def _subtitle(row: Row) -> str:
    unit = _IN_WORDS.get(row.metric.unit, row.metric.unit)
    return f"{unit}, {'higher' if row.metric.higher_is_better else 'lower'} is better"


def _foot(rows: Sequence[Row], foot: tuple[str, ...]) -> tuple[str, ...]:
    counts = sorted({row.estimate.runs for row in rows if row.estimate})
    if not counts:
        return foot
    if not any(row.estimate and _interval(row.estimate) for row in rows):
        return ("Too few runs for an interval.", *foot)
    runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    dots = " Dots: single runs." if any(row.values for row in rows) else ""
    return (f"Median of {runs} runs, in brackets and as whiskers its 95% interval.{dots}", *foot)


def _bandwidth_chart(test: Test, rows: Sequence[Row], foot: tuple[str, ...]) -> Chart:
    bars = []
    for row in rows:
        if row.fraction_of_bandwidth and row.estimate:
            fraction, median = row.fraction_of_bandwidth, row.estimate.median
            aside = f"{format_number(median)} of {format_number(median / fraction)} tokens/s"
            bars.append(replace(_blank(row), parts=(fraction,), number=f"{fraction:.0%}", aside=aside))
        else:
            bars.append(replace(_blank(row), note="ceiling unknown" if row.estimate else failure_text(row)))
    words = "Grey: as fast as this memory can be read, once per token."
    return bar_chart(
        f"Decode against the memory’s limit, {test.name}",
        "fraction of the measured bandwidth, higher is better",
        bars,
        (words, *foot),
        ceiling=1.0,
    )


def _question_charts(rows: Sequence[Row], foot: tuple[str, ...]) -> Iterator[tuple[str, Chart]]:
    for test in dict.fromkeys(row.test for row in rows):
        of_test = [row for row in rows if row.test == test]
        by_name = {(row.placement, row.metric.name): row for row in of_test}
        total, rate = ([row for row in of_test if row.metric.name == name] for name in _QUESTION)
        if total:
            yield "question-time", _time_chart(_ranked(total), by_name, foot)
        if rate:
            bars = [_bar(row) for row in _ranked(rate)]
            yield (
                "words-per-second",
                bar_chart("Question, pace of the answer", _subtitle(rate[0]), bars, _foot(rate, foot)),
            )


def _time_chart(rows: Sequence[Row], figures_of: Mapping[tuple[str, str], Row], foot: tuple[str, ...]) -> Chart:
    """Total time, its part before the first visible word pale."""

    def median(row: Row, name: str) -> float | None:
        other = figures_of.get((row.placement, name))
        return other.estimate.median if other and other.estimate else None

    bars = []
    for row in rows:
        thinking, words = median(row, "thinking_seconds"), median(row, "words")
        total = row.estimate.median if row.estimate else 0.0
        parts = () if thinking is None else (min(thinking, total), max(total - thinking, 0.0))
        aside = "" if words is None else f" · {words:.0f} words"
        bars.append(_bar(row, *parts, aside=aside))
    pale = "Pale: thinking, until the first visible word. Full: the answer."
    return bar_chart("Question, time in all", _subtitle(rows[0]), bars, (pale, *_foot(rows, foot)))


def _lines(field: str, rows: Sequence[Row], foot: tuple[str, ...]) -> tuple[str, Chart]:
    tests = list(dict.fromkeys(row.test for row in rows))
    fixed = replace(tests[0], **{field: 0}).name  # type: ignore[arg-type]
    lines, missing = [], []
    for placement in dict.fromkeys(row.placement for row in rows):
        own = sorted((row for row in rows if row.placement == placement), key=lambda row: getattr(row.test, field))
        line = _line(field, own)
        if line.points:
            lines.append(line)
        missing += _missing(placement, own)
    words = _foot(rows, foot)
    if words:
        words = (words[0].replace("in brackets and as whiskers", "as a band").split(" Dots:")[0], *words[1:])
    title = f"{rows[0].metric.title} by {field.replace('_', ' ')}" + (f", {fixed}" if fixed else "")
    chart = line_chart(title, _subtitle(rows[0]), lines, (*missing, *words), x_title=_VARIES[field])
    return _slug(title), chart


def _missing(placement: str, rows: Sequence[Row]) -> list[str]:
    """One line for a placement without any result, one per test where only some are missing."""
    without = [row for row in rows if row.estimate is None]
    if len(without) == len(rows):
        return [f"No result: {placement} ({failure_text(rows[0])})"]
    return [f"No result: {placement}, {row.test.name} ({failure_text(row)})" for row in without]


def _line(field: str, rows: Sequence[Row]) -> Line:
    known = [(getattr(row.test, field), row.estimate) for row in rows if row.estimate]
    points = tuple((x, one.median, *(_interval(one) or (one.median, one.median))) for x, one in known)
    blank = _blank(rows[0])
    return Line(label=blank.label, unit=blank.unit, tag=blank.tag, broken=blank.broken, points=points)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def as_svg(chart: Chart) -> str:
    """An `<svg>` element that says in words what it shows; ids are unique to the chart's name. Same in, same out."""
    text = StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context(STYLE):
        chart.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    head = f'<svg role="img" aria-label="{escape(f"{chart.title}. {chart.description}")}"'
    return svg.replace("<svg", head, 1).replace(">", f">\n<title>{escape(chart.title)}</title>", 1)


def write_pngs(charts: Mapping[str, Chart], folder: Path) -> list[Path]:
    """One PNG per chart at 144 dots per inch, named after it. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chart in charts.items():
        paths.append(folder / f"{name}.png")
        with matplotlib.rc_context(STYLE):
            chart.savefig(paths[-1], dpi=144, metadata={"Software": None})
    return paths

"""Which charts a set of results has, and what each of them says.

A bar chart per test, a line chart wherever a length or the depth varies. A placement without a result keeps its
place with the reason in it: what failed is shown, never dropped."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path

import matplotlib

from trilithon.measure.metrics import HEADLINE, METRICS
from trilithon.measure.records import Test
from trilithon.results.compare import ComparisonRow, Estimate
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.report.charts import STYLE, Bar, Chart, Drawing, Line, bar_chart, line_chart
from trilithon.results.report.crossings import Crossing, crossings
from trilithon.results.table import failure_text, interval_text
from trilithon.units import format_number

__all__ = ["as_png", "as_svg", "crossing_lines", "figures", "unit_of", "write_pngs"]

_USUAL = ("pp512", "tg128", "pp512+tg128")  # the tests that llama-bench's published tables show
_VARIES = ("prompt_tokens", "generated_tokens", "depth")
# Of the settings in a placement's name; handovers have those of both halves.
_OPTIONS = {"threads": re.compile(r"(?<=[:,])t=(\d+),?"), "micro_batch": re.compile(r"(?<=[:,])ub=(\d+),?")}
_UNIT = re.compile(r"/(cpu|gpu|npu)\b")
_QUESTION = "total_seconds", "words_per_second"


def figures(rows: Sequence[ComparisonRow], *, source: str = "", phrases: Phrases = ENGLISH) -> dict[str, Chart]:
    """Every chart that these rows fill, by a name fit for a file. `source` is written at the foot of each; the names
    are the same in every language."""
    several = len({row.model for row in rows}) > 1
    named = [replace(row, placement=f"{row.placement} · {row.model}") if several else row for row in rows]
    charts: dict[str, Chart] = {}
    for name, chart in _Sheet((source,) if source else (), phrases).charts(named):
        chart.name = next(
            free for number in count(1) if (free := f"{name}-{number}" if number > 1 else name) not in charts
        )
        charts[chart.name] = chart
    return charts


class _Sheet:
    """Charts with one foot, in one language; each comes with its name."""

    def __init__(self, foot: tuple[str, ...], phrases: Phrases):
        self.foot = foot
        self.say = phrases

    def charts(self, rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, Chart]]:
        for kind in METRICS:
            of_kind = [row for row in rows if row.test.kind == kind]
            if kind == "question":
                yield from self._question_charts(of_kind)
            elif kind == "cold":
                for metric in METRICS[kind]:
                    yield from self._bar_charts([row for row in of_kind if row.metric == metric])
            else:
                headline = [row for row in of_kind if row.metric.name == HEADLINE[kind]]
                lines = list(_groups(headline))
                yield from self._bar_charts(_for_bars(headline, [test for _, tests in lines for test in tests]))
                for field, tests in lines:
                    yield self._lines(field, [row for row in headline if row.test in tests])
                yield from self._setting_lines(headline)

    def _bar_charts(self, rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, Chart]]:
        for test in dict.fromkeys(row.test for row in rows):
            shown = _ranked([row for row in rows if row.test == test])
            title = self.say.metric(shown[0].metric)
            if test.kind in ("pp", "tg", "pg"):
                title = self.say("chart_of_test", metric=title, test=test.name)
            name = _slug(f"{shown[0].metric.title} {'' if test.kind == 'cold' else test.name}")
            bars = [self._bar(row) for row in shown]
            yield name, bar_chart(title, self._subtitle(shown[0]), bars, self._foot_of_bars(shown))
            known = sorted((row for row in shown if row.fraction_of_bandwidth), key=_by_fraction)
            if known:
                rest = [row for row in shown if not row.fraction_of_bandwidth]
                yield _slug(f"bandwidth {test.name}"), self._bandwidth_chart(test, [*known, *rest])

    def _bar(self, row: ComparisonRow, *parts: float, aside: str = "") -> Bar:
        """The bar of this figure; `parts` where it is made up of several."""
        blank = self._blank(row)
        if row.estimate is None:
            return replace(blank, note=self._failure(row))
        estimate = row.estimate
        return replace(
            blank,
            parts=parts or (estimate.median,),
            interval=_interval(estimate),
            values=row.values,
            number=self._number(estimate.median),
            aside=f"({interval_text(estimate, self.say)}){aside}",
        )

    def _blank(self, row: ComparisonRow) -> Bar:
        return Bar(
            label=row.placement,
            unit=unit_of(row.placement),
            tag=self._tag(row),
            broken=_is_broken(row),
            lacking=self.say("no_result"),
        )

    def _tag(self, row: ComparisonRow) -> str:
        """What a reader must not miss beside the name: a wrong answer, runs that failed."""
        wrong = row.quality is not None and row.quality.verdict in ("degraded", "broken")
        tags = [self.say(f"tag_{row.simulated}")] if row.simulated else []
        tags += [self.say(f"tag_{row.quality.verdict}")] if row.quality and wrong else []
        if row.estimate and row.note:
            tags.append(row.note.split(":")[0])
        return ", ".join(tags)

    def _number(self, value: float) -> str:
        return self.say.number(format_number(value))

    def _failure(self, row: ComparisonRow) -> str:
        return failure_text(row, self.say)

    def _subtitle(self, row: ComparisonRow) -> str:
        unit = self.say(f"unit_{row.metric.unit.replace('/', '_per_')}")
        return self.say("higher" if row.metric.higher_is_better else "lower", unit=unit)

    def _foot_of_bars(self, rows: Sequence[ComparisonRow]) -> tuple[str, ...]:
        dots = self.say("foot_dots") if any(row.values for row in rows) else ""
        return self._foot(rows, "foot_bars", dots)

    def _foot(self, rows: Sequence[ComparisonRow], how: str, more: str = "") -> tuple[str, ...]:
        counts = sorted({row.estimate.runs for row in rows if row.estimate})
        if not counts:
            return self.foot
        if not any(row.estimate and _interval(row.estimate) for row in rows):
            return (self.say("foot_few"), *self.foot)
        how = "foot_questions" if rows[0].test.kind == "questions" else how
        several = len(counts) > 1
        runs = self.say("from_to", least=counts[0], most=counts[-1]) if several else str(counts[0])
        return (self.say(how, runs=runs) + more, *self.foot)

    def _bandwidth_chart(self, test: Test, rows: Sequence[ComparisonRow]) -> Chart:
        bars = []
        for row in rows:
            if row.fraction_of_bandwidth and row.estimate:
                fraction, median = row.fraction_of_bandwidth, row.estimate.median
                limit, unit = self._number(median / fraction), self.say.unit(row.metric)
                aside = self.say("of_ceiling", median=self._number(median), ceiling=limit, unit=unit)
                share = self.say.number(f"{fraction:.0%}")
                bars.append(replace(self._blank(row), parts=(fraction,), number=share, aside=aside))
            else:
                note = self.say("ceiling_unknown") if row.estimate else self._failure(row)
                bars.append(replace(self._blank(row), note=note))
        title, subtitle = (
            self.say("chart_bandwidth", test=test.name),
            self.say("higher", unit=self.say("unit_fraction")),
        )
        return bar_chart(title, subtitle, bars, (self.say("foot_bandwidth"), *self.foot), ceiling=1.0)

    def _question_charts(self, rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, Chart]]:
        for test in dict.fromkeys(row.test for row in rows):
            of_test = [row for row in rows if row.test == test]
            by_name = {(row.placement, row.metric.name): row for row in of_test}
            total, rate = ([row for row in of_test if row.metric.name == name] for name in _QUESTION)
            if total:
                yield "question-time", self._time_chart(_ranked(total), by_name)
            if rate:
                bars = [self._bar(row) for row in _ranked(rate)]
                title, foot = self.say("chart_question_pace"), self._foot_of_bars(rate)
                yield "words-per-second", bar_chart(title, self._subtitle(rate[0]), bars, foot)

    def _time_chart(self, rows: Sequence[ComparisonRow], figures_of: Mapping[tuple[str, str], ComparisonRow]) -> Chart:
        """Total time, its part before the first visible word pale."""

        def median(row: ComparisonRow, name: str) -> float | None:
            other = figures_of.get((row.placement, name))
            return other.estimate.median if other and other.estimate else None

        bars = []
        for row in rows:
            thinking, words = median(row, "thinking_seconds"), median(row, "words")
            total = row.estimate.median if row.estimate else 0.0
            parts = () if thinking is None else (min(thinking, total), max(total - thinking, 0.0))
            aside = "" if words is None else self.say("words", count=f"{words:.0f}")
            bars.append(self._bar(row, *parts, aside=aside))
        foot = (self.say("foot_thinking"), *self._foot_of_bars(rows))
        return bar_chart(self.say("chart_question_time"), self._subtitle(rows[0]), bars, foot)

    def _lines(self, field: str, rows: Sequence[ComparisonRow]) -> tuple[str, Chart]:
        tests = list(dict.fromkeys(row.test for row in rows))
        fixed = replace(tests[0], **{field: 0}).name  # type: ignore[arg-type]
        lines, missing = [], []
        for placement in dict.fromkeys(row.placement for row in rows):
            own = sorted((row for row in rows if row.placement == placement), key=lambda row: getattr(row.test, field))
            line = self._line(field, own)
            if line.points:
                lines.append(line)
            missing += self._missing(placement, own)
        return _slug(f"{rows[0].metric.title} by {field} {fixed}"), self._line_chart(field, fixed, rows, lines, missing)

    def _line_chart(
        self, field: str, fixed: str, rows: Sequence[ComparisonRow], lines: Sequence[Line], missing: Sequence[str] = ()
    ) -> Chart:
        crossed = crossings(lines)
        title, axis = self._line_title(rows[0], field, fixed), self.say(f"axis_{field}")
        foot = (*crossing_lines(crossed, axis, self.say), *missing, *self._foot(rows, "foot_lines"))
        rings = [(crossing.x, crossing.y) for crossing in crossed]
        return line_chart(title, self._subtitle(rows[0]), lines, foot, x_title=axis, rings=rings)

    def _setting_lines(self, rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, Chart]]:
        """Placements that differ in their threads, or in their micro-batch, as points of one line."""
        for test in dict.fromkeys(row.test for row in rows):
            for field, option in _OPTIONS.items():
                series: dict[str, dict[int, ComparisonRow]] = {}
                for row in rows:
                    values = option.findall(row.placement) if row.test == test and row.estimate else ()
                    if len(values) == 1:
                        name = re.sub(r"[:,](?=\s|$)", "", option.sub("", row.placement))
                        series.setdefault(name, {})[int(values[0])] = row
                several = {name: points for name, points in series.items() if len(points) > 1}
                if several:
                    lines = [self._setting_line(name, points) for name, points in several.items()]
                    shown = [row for points in several.values() for row in points.values()]
                    name = _slug(f"{shown[0].metric.title} by {field} {test.name}")
                    yield name, self._line_chart(field, test.name, shown, lines)

    def _setting_line(self, name: str, rows: Mapping[int, ComparisonRow]) -> Line:
        points = tuple(_point(x, rows[x].estimate) for x in sorted(rows))
        first = next(iter(rows.values()))
        return Line(label=name, unit=unit_of(name), tag=self._tag(first), broken=_is_broken(first), points=points)

    def _line_title(self, row: ComparisonRow, field: str, fixed: str) -> str:
        key = "chart_by_of_test" if fixed else "chart_by"
        return self.say(key, metric=self.say.metric(row.metric), field=self.say(f"field_{field}"), test=fixed)

    def _missing(self, placement: str, rows: Sequence[ComparisonRow]) -> list[str]:
        """One line for a placement without any result, one per test where only some are missing."""
        without = [row for row in rows if row.estimate is None]
        if len(without) == len(rows):
            return [self.say("lacks_all", placement=placement, reason=self._failure(rows[0]))]
        return [
            self.say("lacks_test", placement=placement, test=row.test.name, reason=self._failure(row))
            for row in without
        ]

    def _line(self, field: str, rows: Sequence[ComparisonRow]) -> Line:
        points = tuple(_point(getattr(row.test, field), row.estimate) for row in rows if row.estimate)
        return Line(
            label=rows[0].placement,
            unit=unit_of(rows[0].placement),
            tag=self._tag(rows[0]),
            broken=_is_broken(rows[0]),
            points=points,
        )


def crossing_lines(crossed: Sequence[Crossing], axis: str, phrases: Phrases) -> list[str]:
    """A sentence for each: from where on another placement is the best."""
    return [
        phrases("crossing", x=f"{float(f'{one.x:.2g}'):.0f}", axis=axis, before=one.before, after=one.after)
        for one in crossed
    ]


def _point(x: float, estimate: Estimate | None) -> tuple[float, float, float, float]:
    if estimate is None:
        raise ValueError("a point of a line needs an estimate")
    return (x, estimate.median, *(_interval(estimate) or (estimate.median, estimate.median)))


def _for_bars(rows: Sequence[ComparisonRow], in_lines: Sequence[Test]) -> list[ComparisonRow]:
    """Tests that a line chart shows need no bars, but for the usual one (or the first)."""
    tests = list(dict.fromkeys(row.test for row in rows))
    first = next((test for test in tests if test.name in _USUAL), tests[0] if tests else None)
    return [row for row in rows if row.test == first or row.test not in in_lines]


def _groups(rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, list[Test]]]:
    """Tests that differ in one thing only, with the name of that field."""
    tests = list(dict.fromkeys(row.test for row in rows))
    for field in _VARIES:
        alike: dict[Test, list[Test]] = {}
        for test in tests:
            alike.setdefault(replace(test, **{field: 0}), []).append(test)  # type: ignore[arg-type]
        yield from ((field, group) for group in alike.values() if len(group) > 1)


def _by_fraction(row: ComparisonRow) -> float:
    return -(row.fraction_of_bandwidth or 0)


def _ranked(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Best first, then the broken, then those without a result."""

    def rank(row: ComparisonRow) -> tuple[bool, bool, float]:
        median = row.estimate.median if row.estimate else 0.0
        return row.estimate is None, _is_broken(row), -median if row.metric.higher_is_better else median

    return sorted(rows, key=rank)


def _is_broken(row: ComparisonRow) -> bool:
    return row.quality is not None and row.quality.verdict == "broken"


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def unit_of(placement: str) -> str:
    """The unit in a placement's name; two of them are a handover."""
    units = _UNIT.findall(placement)
    return "handover" if len(units) > 1 else units[0] if units else "other"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def as_svg(chart: Drawing) -> str:
    """An `<svg>` element that says in words what it shows; ids are unique to the chart's name. Same in, same out."""
    text = StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context(STYLE):
        chart.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    head = f'<svg role="img" aria-label="{escape(f"{chart.title}. {chart.description}")}"'
    return svg.replace("<svg", head, 1).replace(">", f">\n<title>{escape(chart.title)}</title>", 1)


def as_png(chart: Drawing, dpi: float = 216) -> bytes:
    """Without `dpi` a chart is 960 pixels wide: sharp on screens of any kind."""
    file = BytesIO()
    with matplotlib.rc_context(STYLE):
        chart.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def write_pngs(charts: Mapping[str, Chart], folder: Path) -> list[Path]:
    """One PNG per chart, named after it. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in charts]
    for path, chart in zip(paths, charts.values(), strict=True):
        path.write_bytes(as_png(chart))
    return paths

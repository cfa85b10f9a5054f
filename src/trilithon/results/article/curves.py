"""Speed over the depth of the context, a line per placement, for articles."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from trilithon.measure.records import Test
from trilithon.results.article.arrangement import Arrangement
from trilithon.results.article.subjects import Column, ComparedPlacement
from trilithon.results.phrases import Phrases
from trilithon.results.report.charts import COLOURS, Chart, Line, line_chart
from trilithon.results.report.crossings import crossings
from trilithon.results.report.plots import crossing_lines

__all__ = ["curves", "swept"]


def swept(columns: Sequence[Column]) -> dict[Test, list[Column]]:
    """The columns that differ in depth alone, by their test without one."""
    alike: dict[Test, list[Column]] = {}
    for column in columns:
        if column.test.kind in ("pp", "tg", "pg"):
            alike.setdefault(replace(column.test, depth=0), []).append(column)
    return {test: group for test, group in alike.items() if len(group) > 1}


def curves(
    arrangement: Arrangement, columns: Sequence[Column], foot: Sequence[str], phrases: Phrases
) -> Iterator[tuple[str, Chart]]:
    """A chart per test, panel and group, each with its name. `foot` stands below each."""
    several = len({_place(arrangement, one) for one in arrangement.subjects}) > 1
    for test, group in swept(columns).items():
        lines: dict[str, list[Line]] = {}
        for one in arrangement.subjects:
            line = _line(one, group, phrases)
            if len(line.points) > 1:
                lines.setdefault(_place(arrangement, one) if several else "", []).append(line)
        for where, drawn in lines.items():
            name = re.sub(r"\W+", "-", f"{test.name} depth {where}").strip("-")
            yield name, _chart(test, where, drawn, foot, phrases)


def _place(arrangement: Arrangement, subject: ComparedPlacement) -> str:
    return " · ".join(filter(None, (arrangement.panel(subject), arrangement.group(subject))))


def _line(subject: ComparedPlacement, columns: Sequence[Column], phrases: Phrases) -> Line:
    known = [(column.test.depth, figure) for column in columns if (figure := subject.figures.get(column.name))]
    verdict = subject.quality.verdict if subject.quality else ""
    tags = [phrases(f"tag_{verdict}")] if verdict in ("broken", "degraded") else []
    tags += [phrases(f"tag_{subject.simulated}")] if subject.simulated else []
    return Line(
        label=subject.placement,
        unit=subject.unit if subject.unit in COLOURS else "other",
        points=tuple((depth, figure.median, figure.least, figure.most) for depth, figure in sorted(known)),
        tag=", ".join(tags),
        broken=verdict == "broken",
    )


def _chart(test: Test, where: str, lines: Sequence[Line], foot: Sequence[str], phrases: Phrases) -> Chart:
    crossed, axis = crossings(lines), phrases("axis_depth")
    metric = phrases(f"article_title_{test.kind}")
    title = phrases("chart_by_of_test", metric=metric, field=phrases("field_depth"), test=test.name)
    subtitle = " · ".join(filter(None, (where, phrases("higher", unit=phrases("unit_tokens_per_s")))))
    rings = [(crossing.x, crossing.y) for crossing in crossed]
    sentences = (*crossing_lines(crossed, axis, phrases), *foot)
    return line_chart(title, subtitle, lines, sentences, x_title=axis, rings=rings)

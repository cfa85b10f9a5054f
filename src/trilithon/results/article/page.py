"""Several campaigns as one article: charts, one table and conclusions, as a page, as pictures and as tables to copy."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Template

from trilithon import __version__
from trilithon.errors import UserError
from trilithon.measure.records import Campaign
from trilithon.results.article.arrangement import Arrangement, arrange
from trilithon.results.article.bars import GroupedBar, Panel, Series, grouped_bars
from trilithon.results.article.conclusions import conclusions, ratio_of, ratio_text
from trilithon.results.article.curves import curves, swept
from trilithon.results.article.subjects import By, Column, ComparedPlacement, Spread, labelled, runs_of, subjects_of
from trilithon.results.phrases import Phrases
from trilithon.results.report.charts import Drawing
from trilithon.results.report.markup import Html, element, joined, rows_of_cells, table, trusted
from trilithon.results.report.plots import as_png, as_svg
from trilithon.units import format_number

__all__ = ["Article", "ArticleWishes", "make_article", "write_article"]

_CHARTED = ("thinking_seconds", "words_per_second")
_MOST_CHARTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ArticleWishes:
    """What the reader chose. `labels` are "SPEC=TEXT"."""

    by: By | None = None
    baseline: str | None = None
    language: str = "en"
    title: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """`html` is a whole page; `markdown` and `csv` are its table; `svgs` are the charts again."""

    html: str
    markdown: str
    csv: str
    charts: Mapping[str, Drawing]
    svgs: Mapping[str, str]
    conclusions: tuple[str, ...]


def make_article(campaigns: Sequence[Campaign], wishes: ArticleWishes) -> Article:
    """Raises UserError where nothing was measured, and for a label or a baseline that names nothing."""
    say = Phrases(wishes.language)
    subjects, columns = subjects_of(campaigns, say)
    if not columns:
        numbers = ", ".join(str(campaign.id) for campaign in campaigns)
        raise UserError(f"campaigns without a measurement: {numbers}; there is nothing to draw")
    arrangement = arrange(labelled(subjects, wishes.labels), wishes.by, wishes.baseline)
    writer = _Writer(arrangement, columns, say)
    title = wishes.title or writer.title()
    charts = writer.charts()
    svgs = {name: as_svg(chart) for name, chart in charts.items()}
    sentences = tuple(conclusions(arrangement, columns, say))
    return Article(
        html=writer.page(title, svgs, sentences, wishes.language),
        markdown=writer.markdown(),
        csv=writer.csv(),
        charts=charts,
        svgs=svgs,
        conclusions=sentences,
    )


def write_article(article: Article, folder: Path, *, width: int, svg: bool) -> list[Path]:
    """article.html, article.md, article.csv and a PNG per chart, `width` pixels wide; with `svg` an SVG of each too.
    Raises OSError where the folder cannot be written."""
    contents: dict[str, bytes] = {
        "article.html": article.html.encode(errors="replace"),
        "article.md": article.markdown.encode(errors="replace"),
        "article.csv": article.csv.encode(errors="replace"),
    }
    for name, chart in article.charts.items():
        contents[f"{name}.png"] = as_png(chart, dpi=width / chart.get_figwidth())
        if svg:
            contents[f"{name}.svg"] = article.svgs[name].encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        part = folder / f".{name}.{os.getpid()}"
        part.write_bytes(content)
        part.replace(folder / name)
    return [folder / name for name in contents]


class _Writer:
    def __init__(self, arrangement: Arrangement, columns: Sequence[Column], phrases: Phrases):
        self.arrangement = arrangement
        self.subjects = arrangement.subjects
        self.columns = columns
        self.say = phrases

    def title(self) -> str:
        models = dict.fromkeys(subject.model for subject in self.subjects)
        boards = dict.fromkeys(subject.board for subject in self.subjects)
        return self.say("title", models=", ".join(models), board=", ".join(boards))

    def charts(self) -> dict[str, Drawing]:
        """Of tests that differ in depth alone, bars for the first and a curve for all."""
        in_curves = {column.name for group in swept(self.columns).values() for column in group[1:]}
        charted = [c for c in self.columns if c.test.kind != "question" or c.metric.name in _CHARTED]
        charted = [column for column in charted if column.name not in in_curves][:_MOST_CHARTS]
        charts: dict[str, Drawing] = {}
        for column in charted:
            name = "".join(char if char.isalnum() else "-" for char in column.name).strip("-")
            charts[name] = self._chart(column)
            charts[name].name = name
        foot = [self.say("article_foot_curve"), *self._constant(), self._made()]
        for name, curve in islice(curves(self.arrangement, self.columns, foot, self.say), _MOST_CHARTS):
            charts[name] = curve
            curve.name = name
        return charts

    def _chart(self, column: Column) -> Drawing:
        panels = [
            Panel(
                panel if len(self.arrangement.panels) > 1 else "",
                [(group, bars) for group in self.arrangement.groups if (bars := self._bars(column, panel, group))],
            )
            for panel in self.arrangement.panels
        ]
        series = {self.arrangement.series(subject): subject for subject in reversed(self.subjects)}
        legend = [Series(name, series[name].unit, bool(series[name].simulated)) for name in self.arrangement.legend]
        key = "higher" if column.metric.higher_is_better else "lower"
        unit = self.say(f"unit_{column.metric.unit.replace('/', '_per_')}")
        return grouped_bars(self._column_title(column), self.say(key, unit=unit), panels, legend, self._foot(column))

    def _bars(self, column: Column, panel: str, group: str) -> list[GroupedBar]:
        place = (panel, group)
        return [
            self._bar(column, subject)
            for subject in self.subjects
            if (self.arrangement.panel(subject), self.arrangement.group(subject)) == place
        ]

    def _bar(self, column: Column, subject: ComparedPlacement) -> GroupedBar:
        series, figure = self.arrangement.series(subject), subject.figures.get(column.name)
        if figure is None:
            reason = f": {subject.note}" if subject.note else ""
            return GroupedBar(series=series, value=None, words=f"{self.say('no_result')}{reason}")
        beside = self.arrangement.baseline(subject)
        ratio = ratio_of(figure, beside.figures.get(column.name)) if beside else None
        asides = [] if ratio is None else [ratio_text(ratio, self.say)]
        verdict = subject.quality.verdict if subject.quality else ""
        asides += [self.say(f"tag_{verdict}")] if verdict in ("broken", "degraded") else []
        asides += [self.say(f"tag_{subject.simulated}")] if subject.simulated else []
        return GroupedBar(
            series=series,
            value=figure.median,
            words=self._number(figure.median),
            aside=" · ".join(asides),
            least=figure.least,
            most=figure.most,
        )

    def _number(self, value: float) -> str:
        return self.say.number(format_number(value))

    def _column_title(self, column: Column) -> str:
        if column.test.kind in ("question", "questions"):
            return self.say(f"article_{column.metric.name}", set=column.test.question)
        return self.say("chart_of_test", metric=self.say(f"article_title_{column.test.kind}"), test=column.name)

    def _foot(self, column: Column) -> list[str]:
        counts = [figure.runs for one in self.subjects if (figure := one.figures.get(column.name))]
        runs = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
        key = "article_foot_questions" if column.digest else "article_foot"
        foot = [self.say(key, runs=runs, baseline=self.arrangement.baseline_name)]
        if self._has_stand_in():
            foot.append(self.say("article_simulated"))
        return [*foot, *self._constant(), self._made()]

    def _has_stand_in(self) -> bool:
        return any(subject.simulated for subject in self.subjects)

    def _constant(self) -> list[str]:
        """What all subjects share, in one line."""
        names = ("model", "quantization", "board")
        parts = [self.subjects[0].value(name) for name in names if name not in self.arrangement.varying]
        return [" · ".join(filter(None, parts))] if any(parts) else []

    def _made(self) -> str:
        dates = sorted({subject.campaign.started[:10] for subject in self.subjects if subject.campaign.started})
        when = "–".join(dict.fromkeys((dates[0], dates[-1]))) if dates else ""
        versions = dict.fromkeys(subject.campaign.version for subject in self.subjects)
        tool = ", ".join(f"Trilithon {version}" for version in versions if version) or f"Trilithon {__version__}"
        return " · ".join(filter(None, (when, tool)))

    # The table

    def _heads(self) -> list[str]:
        first = [self.say(f"article_head_{name}") for name in self.arrangement.varying]
        columns = [*map(self._column_head, self.columns)]
        heads = [*first, self.say("article_head_placement"), *columns, self.say("article_head_quality")]
        return heads + [self.say("article_head_energy")] * self._has_energy()

    def _column_head(self, column: Column) -> str:
        if column.test.kind not in ("question", "questions"):
            return column.name
        head = self.say(f"article_head_{column.metric.name}")
        return f"{head} ({column.test.question})" if column.digest else head

    def _has_energy(self) -> bool:
        return any(subject.joules_per_token is not None for subject in self.subjects)

    def _rows(self) -> list[list[str]]:
        """In the order of the campaigns, which is how the reader named them."""
        return [self._row(subject) for subject in self.subjects]

    def _row(self, subject: ComparedPlacement) -> list[str]:
        cells = [subject.value(name) for name in self.arrangement.varying]
        mark = f" ({self.say(f'tag_{subject.simulated}')})" if subject.simulated else ""
        cells.append(subject.placement + mark)
        cells += [self._cell(subject.figures.get(column.name)) for column in self.columns]
        cells.append(self._quality(subject))
        if self._has_energy():
            joules = subject.joules_per_token
            cells.append("–" if joules is None else self._number(joules))
        return cells

    def _cell(self, figure: Spread | None) -> str:
        if figure is None:
            return "–"
        median, least, most = (self._number(value) for value in (figure.median, figure.least, figure.most))
        return median if least == most else f"{median} ({least}–{most})"

    def _quality(self, subject: ComparedPlacement) -> str:
        verdict = subject.quality.verdict if subject.quality else "unknown"
        return self.say(f"article_quality_{verdict}")

    def markdown(self) -> str:
        lines = [self._heads(), ["---"] * len(self._heads()), *self._rows()]
        escaped = (" | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in line) for line in lines)
        return "".join(f"| {line} |\n" for line in escaped)

    def csv(self) -> str:
        """Medians in full precision, for other programs: English heads, a point as decimal mark."""
        text = io.StringIO()
        names = ["campaign", "board", "model", "quantization", "engine", "build", "unit", "placement", "spec"]
        figures = [f"{column.name}{part}" for column in self.columns for part in ("", "_least", "_most", "_runs")]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, *figures, "quality", "joules_per_token", "simulated"])
        for one in self.subjects:
            numbers: list[object] = []
            for column in self.columns:
                figure = one.figures.get(column.name)
                numbers += [figure.median, figure.least, figure.most, figure.runs] if figure else [""] * 4
            quality = one.quality.verdict if one.quality else ""
            words = [one.campaign.id, *(one.value(name) for name in names[1:])]
            writer.writerow([*words, *numbers, quality, one.joules_per_token, one.simulated])
        return text.getvalue()

    # The page

    def page(self, title: str, svgs: Mapping[str, str], sentences: Sequence[str], language: str) -> str:
        heads = self._heads()
        figures = [element("figure", trusted(svg)) for svg in svgs.values()]
        body = [
            element("p", " · ".join([*self._constant(), self._made()]), class_="muted"),
            *(element("p", text) for text in sentences),
            *figures,
            table(self.say("article_table"), heads, rows_of_cells(heads, self._rows())),
            *self._folded(),
            element("footer", self.say("article_footer")),
        ]
        return Template(files(__package__).joinpath("article.html").read_text(encoding="utf-8")).substitute(
            language=language, version=__version__, title=joined([title]), body=joined(body, "\n")
        )

    def _folded(self) -> list[Html]:
        """Warnings and what was measured, closed: for those who want to know."""
        lines = dict.fromkeys(
            f"{run.placement}: {line}" for run in runs_of(self.subjects) for line in (*run.warnings, *run.remarks)
        )
        parts = [self._details(self.say("article_warnings", count=len(lines)), list(lines))] if lines else []
        differing = [self._facts(subject) for subject in self.subjects]
        return [*parts, self._details(self.say("article_measured"), list(dict.fromkeys(differing)))]

    def _facts(self, subject: ComparedPlacement) -> str:
        record, model = subject.record, subject.record.model
        facts = (subject.placement, subject.board, str(model.get("file") or subject.model), record.build_version)
        return " · ".join(filter(None, (*facts, subject.campaign.started[:10])))

    def _details(self, summary: str, lines: Sequence[str]) -> Html:
        items = (element("li", line, lang="en") for line in lines)
        return element("details", element("summary", summary), element("ul", *items))

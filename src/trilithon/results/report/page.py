"""The report: one page that opens offline, with the verdict first and everything it rests on below."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from trilithon.measure.records import Campaign, Test
from trilithon.results.compare import ComparisonRow
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.report import sections
from trilithon.results.report.markup import Html, element, joined, table, trusted
from trilithon.results.table import bandwidth_text, failure_text, interval_text, lacks_results, placement_text
from trilithon.units import format_number

if TYPE_CHECKING:
    from trilithon.results.report.charts import Chart

__all__ = ["DARK", "render_report", "report_title", "themed", "write_report"]

# The charts' colours on a dark card: lighter blue, darker yellow, the rest as light as needed for contrast.
DARK = {
    "cpu": "#4ba3e0",
    "gpu": "#e8aa2e",
    "npu": "#23b48c",
    "handover": "#d792b8",
    "other": "#9aa2ab",
    "ink": "#eceef0",
    "muted": "#a3abb4",
    "faint": "#343a40",
    "alarm": "#ff8a80",
    "card": "#1d2125",
}


_HEADS = ("Placement", "Quality", "Figure", "Median", "95% interval", "Unit", "Runs")


def report_title(campaign: Campaign, rows: Sequence[ComparisonRow], phrases: Phrases = ENGLISH) -> str:
    """ "Qwen3 1.7B Q8_0 on Orange Pi 5 Plus"."""
    names = dict.fromkeys([row.model for row in rows] or [str(p.model.get("name", "")) for p in campaign.placements])
    description = str(campaign.board.get("description", "")).split(" · ")[0]
    board = str(campaign.board.get("model") or description or phrases("unknown_board"))
    return phrases("title", models=", ".join(filter(None, names)) or phrases("no_model"), board=board)


def write_report(
    folder: Path,
    campaign: Campaign,
    rows: Sequence[ComparisonRow],
    sentence: str,
    comparisons: Sequence[str] = (),
    *,
    charts: "Mapping[str, Chart] | None" = None,
) -> Path:
    """Write `report.html` into the folder, whole or not at all. `charts` are drawn from the rows where not given.

    Raises OSError where the folder cannot be written."""
    from trilithon.results.report.plots import as_svg, figures

    drawn = figures(rows, source=report_title(campaign, rows)) if charts is None else charts
    page = render_report(campaign, rows, sentence, comparisons, [as_svg(chart) for chart in drawn.values()])
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / "report.html", folder / f".report.{os.getpid()}.html"
    part.write_text(page, encoding="utf-8", errors="replace")  # a file name may be any bytes
    part.replace(path)
    return path


def render_report(
    campaign: Campaign, rows: Sequence[ComparisonRow], sentence: str, comparisons: Sequence[str], svgs: Sequence[str]
) -> str:
    """The page. `svgs` are `plots.as_svg`'s; everything else is text and is escaped."""
    from trilithon.results.report.charts import COLOURS

    body = [
        element("p", sentence, class_="verdict"),
        _comparisons(comparisons),
        _charts(svgs),
        _figures(rows),
        sections.quality(campaign),
        sections.answers(campaign),
        sections.failures(campaign),
        sections.warnings(campaign),
        sections.remarks(campaign),
        sections.sensors(rows),
        sections.measured(campaign),
    ]
    return Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=joined([report_title(campaign, rows)]),
        subtitle=_subtitle(campaign),
        version=joined([campaign.version]),
        light=_variables(COLOURS),
        dark=_variables(DARK),
        body=joined(body, "\n"),
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _subtitle(campaign: Campaign) -> Html:
    try:
        when = f"{datetime.fromisoformat(campaign.started):%-d %B %Y, %H:%M}"
    except ValueError:  # an import keeps the date as its tool wrote it
        when = campaign.started
    parts: list[str] = [element("time", when, datetime=campaign.started)]
    if campaign.source != "trilithon":
        parts.append(f"imported from {campaign.source}")
    if campaign.status != "finished":
        parts.append(f"{campaign.status}: the results so far are shown")
    if campaign.board.get("description"):
        parts.append(str(campaign.board["description"]))
    return element("p", joined(parts, " · "), class_="muted under")


def _comparisons(comparisons: Sequence[str]) -> Html:
    return element("ul", *(element("li", one) for one in comparisons)) if comparisons else Html("")


def _charts(svgs: Sequence[str]) -> Html:
    cards = (element("figure", trusted(themed(svg))) for svg in svgs)
    return element("section", *cards, class_="charts", aria_label="Charts") if svgs else Html("")


def themed(svg: str) -> str:
    """The same drawing in the page's colours and font, which follow the reader's light or dark: the variables are named
    as in `charts.COLOURS`."""
    from trilithon.results.report.charts import COLOURS

    names = {colour: name for name, colour in COLOURS.items()}
    pattern = "|".join(map(re.escape, names))

    def style(match: re.Match[str]) -> str:
        themed = re.sub(pattern, lambda colour: f"var(--{names[colour[0]]})", match[0])
        return themed.replace("'DejaVu Sans'", "var(--font)")

    # Only inside style attributes: a name that happens to be a colour stays a name.
    return re.sub(r'(?<=\s)style="[^"]*"', style, svg)


def _figures(rows: Sequence[ComparisonRow]) -> Html:
    tests = dict.fromkeys(row.test for row in rows)
    tables = [_test_table(test, [row for row in rows if row.test == test]) for test in tests]
    return element("section", element("h2", "Every figure"), *tables) if tables else Html("")


def _test_table(test: Test, rows: Sequence[ComparisonRow]) -> Html:
    bodies: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in rows:
        bodies.setdefault((row.placement, row.model), []).append(row)
    several = len({model for _, model in bodies}) > 1
    optional = {
        "Of bandwidth": any(bandwidth_text(row) for row in rows),
        "Remarks": any(row.note and row.estimate for row in rows),
    }
    heads = [*_HEADS, *(head for head, wanted in optional.items() if wanted)]
    caption = f"{test.name}: {test.question}" if test.question else test.name
    return table(
        caption,
        heads,
        *(
            _body(placement_text(own[0], f"{name} · {model}" if several else name), own, heads)
            for (name, model), own in bodies.items()
        ),
        numbers={"Median", "95% interval", "Runs", "Of bandwidth"},
    )


def _body(name: str, rows: Sequence[ComparisonRow], heads: Sequence[str]) -> Html:
    """A placement's rows; its name and its quality stand once, beside all of them."""
    if lacks_results(rows):
        why = element("td", failure_text(rows[0]), class_="text failed", colspan=str(len(heads) - 1))
        return element("tr", element("th", name, scope="row"), why)
    high = str(len(rows))
    placement = element("th", name, scope="rowgroup", rowspan=high)
    quality = element("td", sections.badge(rows[0].quality), class_="text", rowspan=high)
    return joined(
        (
            element("tr", *_cells(row, heads, *((placement, quality) if index == 0 else ())))
            for index, row in enumerate(rows)
        ),
        "\n",
    )


def _cells(row: ComparisonRow, heads: Sequence[str], *shared: Html) -> list[Html]:
    estimate = row.estimate
    cells = [
        *shared,
        element("td", row.metric.title, class_="text figure"),
        element("td", format_number(estimate.median) if estimate else "–", class_="number value"),
        element("td", interval_text(estimate) if estimate else "–", class_="number"),
        element("td", row.metric.unit, class_="text"),
        element("td", str(estimate.runs) if estimate else "0", class_="number named", data_title="Runs"),
    ]
    if "Of bandwidth" in heads:
        cells.append(element("td", bandwidth_text(row), class_="number named", data_title="Of bandwidth"))
    if "Remarks" in heads:
        cells.append(element("td", row.note, class_="text named", data_title="Remarks"))
    return cells

"""The report: one page that opens offline, with the verdict first and everything it rests on below."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from trilithon.language import Message
from trilithon.measure.records import Campaign, Test
from trilithon.results.compare import ComparisonRow
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.results.report import sections
from trilithon.results.report.markup import Html, element, joined, table, trusted
from trilithon.results.report.questions import questions
from trilithon.results.report.tuned import charts_of, tuned
from trilithon.results.table import bandwidth_text, failure_text, interval_text, lacks_results, placement_text
from trilithon.results.tuned.steps import TUNE_SOURCE
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


_OF_BANDWIDTH, _REMARKS, _RUNS = Message("Of bandwidth"), Message("Remarks"), Message("Runs")
_NUMBERS = (Message("Median"), Message("95% interval"), _RUNS, _OF_BANDWIDTH)
_HEADS = (Message("Placement"), Message("Quality"), Message("Figure"), *_NUMBERS[:2], Message("Unit"), _RUNS)


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
    phrases: Phrases = ENGLISH,
) -> Path:
    """Write `report.html` into the folder, whole or not at all. `charts` are drawn from the rows where not given.

    Raises OSError where the folder cannot be written."""
    from trilithon.results.report.plots import as_svg

    source = report_title(campaign, rows, phrases)
    drawn = charts_of(campaign, rows, source=source, phrases=phrases) if charts is None else charts
    svgs = [as_svg(chart) for chart in drawn.values()]
    page = render_report(campaign, rows, sentence, comparisons, svgs, phrases)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / "report.html", folder / f".report.{os.getpid()}.html"
    part.write_text(page, encoding="utf-8", errors="replace")  # a file name may be any bytes
    part.replace(path)
    return path


def render_report(
    campaign: Campaign,
    rows: Sequence[ComparisonRow],
    sentence: str,
    comparisons: Sequence[str],
    svgs: Sequence[str],
    phrases: Phrases = ENGLISH,
) -> str:
    """The page. `svgs` are `plots.as_svg`'s; everything else is text and is escaped."""
    from trilithon.results.report.charts import COLOURS

    body = [
        element("p", sentence, class_="verdict"),
        _comparisons(comparisons),
        _charts(svgs, phrases),
        tuned(campaign, phrases),
        _figures(rows, phrases),
        sections.quality(campaign, phrases),
        sections.answers(campaign, phrases),
        questions(campaign, phrases),
        sections.failures(campaign, phrases),
        sections.warnings(campaign, phrases),
        sections.remarks(campaign, phrases),
        sections.sensors(rows, phrases),
        sections.measured(campaign, phrases),
    ]
    return Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8")).substitute(
        language=phrases.language,
        title=joined([report_title(campaign, rows, phrases)]),
        subtitle=_subtitle(campaign, phrases),
        version=joined([campaign.version]),
        light=_variables(COLOURS),
        dark=_variables(DARK),
        body=joined(body, "\n"),
        explanation=sections.explanation(phrases),
        made=joined([phrases.text(Message("Measured with Trilithon {version}.", version=campaign.version))]),
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _subtitle(campaign: Campaign, phrases: Phrases) -> Html:
    try:
        form = "%-d %B %Y, %H:%M" if phrases.language == "en" else "%d.%m.%Y, %H:%M"  # names of months are in English
        when = datetime.fromisoformat(campaign.started).strftime(form)
    except ValueError:  # an import keeps the date as its tool wrote it
        when = campaign.started
    parts: list[str] = [element("time", when, datetime=campaign.started)]
    if campaign.source not in ("trilithon", TUNE_SOURCE):
        parts.append(phrases.text(Message("imported from {source}", source=campaign.source)))
    if campaign.status != "finished":
        status = phrases(f"status_{campaign.status}")
        parts.append(phrases.text(Message("{status}: the results so far are shown", status=status)))
    if campaign.board.get("description"):
        stored = None if phrases.language == "en" else "en"
        parts.append(element("span", str(campaign.board["description"]), lang=stored))
    return element("p", joined(parts, " · "), class_="muted under")


def _comparisons(comparisons: Sequence[str]) -> Html:
    return element("ul", *(element("li", one) for one in comparisons)) if comparisons else Html("")


def _charts(svgs: Sequence[str], phrases: Phrases) -> Html:
    cards = (element("figure", trusted(themed(svg))) for svg in svgs)
    return element("section", *cards, class_="charts", aria_label=phrases.text(Message("Charts"))) if svgs else Html("")


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


def _figures(rows: Sequence[ComparisonRow], phrases: Phrases) -> Html:
    tests = dict.fromkeys(row.test for row in rows)
    tables = [_test_table(test, [row for row in rows if row.test == test], phrases) for test in tests]
    return element("section", element("h2", phrases.text(Message("Every figure"))), *tables) if tables else Html("")


def _test_table(test: Test, rows: Sequence[ComparisonRow], phrases: Phrases) -> Html:
    bodies: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in rows:
        bodies.setdefault((row.placement, row.model), []).append(row)
    several = len({model for _, model in bodies}) > 1
    optional = {
        _OF_BANDWIDTH: any(bandwidth_text(row) for row in rows),
        _REMARKS: any(row.note and row.estimate for row in rows),
    }
    heads = [*_HEADS, *(head for head, wanted in optional.items() if wanted)]
    name = phrases.test(test)
    caption = f"{name}: {test.question}" if test.question else name
    return table(
        caption,
        list(map(phrases.text, heads)),
        *(
            _body(placement_text(own[0], f"{name} · {model}" if several else name, phrases), own, heads, phrases)
            for (name, model), own in bodies.items()
        ),
        numbers=set(map(phrases.text, _NUMBERS)),
    )


def _body(name: str, rows: Sequence[ComparisonRow], heads: Sequence[str], phrases: Phrases) -> Html:
    """A placement's rows; its name and its quality stand once, beside all of them."""
    if lacks_results(rows):
        why = element("td", failure_text(rows[0], phrases), class_="text failed", colspan=str(len(heads) - 1))
        return element("tr", element("th", name, scope="row"), why)
    high = str(len(rows))
    placement = element("th", name, scope="rowgroup", rowspan=high)
    quality = element("td", sections.badge(rows[0].quality, phrases), class_="text", rowspan=high)
    return joined(
        (
            element("tr", *_cells(row, heads, phrases, *((placement, quality) if index == 0 else ())))
            for index, row in enumerate(rows)
        ),
        "\n",
    )


def _cells(row: ComparisonRow, heads: Sequence[str], phrases: Phrases, *shared: Html) -> list[Html]:
    estimate = row.estimate
    cells = [
        *shared,
        element("td", phrases.metric(row.metric), class_="text figure"),
        element("td", phrases.number(format_number(estimate.median)) if estimate else "–", class_="number value"),
        element("td", interval_text(estimate, phrases) if estimate else "–", class_="number"),
        element("td", phrases.unit(row.metric), class_="text"),
        element("td", str(estimate.runs) if estimate else "0", class_="number named", data_title=phrases.text(_RUNS)),
    ]
    if _OF_BANDWIDTH in heads:
        cells.append(
            element("td", bandwidth_text(row, phrases), class_="number named", data_title=phrases.text(_OF_BANDWIDTH))
        )
    if _REMARKS in heads:
        cells.append(element("td", row.note, class_="text named", data_title=phrases.text(_REMARKS)))
    return cells

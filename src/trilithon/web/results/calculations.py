"""What takes the libraries of numbers and of charts, as a program of its own: `calculator` starts it.

They weigh 90 MB, and an interpreter that draws lets no token of a stream through: not in the server's process. A
question is a JSON array on a line of stdin: what, and what about; its answer a JSON object on a line of stdout."""

import base64
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilithon.errors import TrilithonError, UserError
from trilithon.measure.metrics import HEADLINE
from trilithon.measure.records import Campaign
from trilithon.results.compare import Comparison, ComparisonRow, compare_placements, counted_runs, summarise
from trilithon.results.formats import FORMATS, export_campaigns
from trilithon.results.phrases import Phrases
from trilithon.results.report.charts import Chart
from trilithon.results.report.page import render_report, report_title, themed
from trilithon.results.report.plots import as_png, as_svg
from trilithon.results.report.tuned import charts_of, step_lines
from trilithon.results.statements import comparison_lines, comparison_text, remark_lines, warning_lines
from trilithon.results.store.database import Store
from trilithon.results.table import bandwidth_text, failure_text, interval_text, quality_text, render_csv, sensor_lines
from trilithon.results.tuned.steps import end_of
from trilithon.results.verdict import verdict_sentence
from trilithon.units import format_number
from trilithon.web.results.wording import PagePhrases
from trilithon.web.texts import texts_for

__all__ = ["answered", "main"]

_FIGURES_CSV = "figures"


def campaign(database: Path, number: int, language: str) -> dict[str, Any]:
    """Everything that a closer look at a campaign shows: the same sentences, figures and charts as its report."""
    selected = _campaign(database, number)
    phrases = _phrases(language)
    rows = summarise(selected, phrases)
    charts = _charts(selected, rows, phrases)
    return {
        "title": report_title(selected, rows, phrases),
        "started": selected.started,
        "status": selected.status,
        "source": selected.source,
        "board": str(selected.board.get("description", "")),
        "sentence": verdict_sentence(selected, phrases),
        "comparisons": comparison_lines(selected, phrases),
        "tried": step_lines(selected, phrases),
        "by_hand": list(end.by_hand) if (end := end_of(selected)) is not None else [],
        "rows": [_row(row, phrases) for row in rows],
        "charts": [
            {"name": name, "title": chart.title, "svg": themed(as_svg(chart))} for name, chart in charts.items()
        ],
        "warnings": warning_lines(selected),
        "remarks": [*remark_lines(selected), *sensor_lines(rows)],
        "failures": _failures(selected),
        "placements": [placement.name for placement in selected.placements],
    }


def verdict(database: Path, number: int, language: str) -> dict[str, Any]:
    selected, phrases = _campaign(database, number), _phrases(language)
    rows = [_row(row, phrases) for row in summarise(selected, phrases)]
    return {"sentence": verdict_sentence(selected, phrases), "rows": rows}


def _phrases(language: str) -> Phrases:
    return PagePhrases(texts_for(language))


def _row(row: ComparisonRow, phrases: Phrases) -> dict[str, Any]:
    """A figure in words, as the report's table has it."""
    return {
        "placement": row.placement,
        "model": row.model,
        "test": row.test.name,
        "question": row.test.question,
        "metric": row.metric.name,
        "title": row.metric.title,
        "unit": row.metric.unit,
        "median": phrases.number(format_number(row.estimate.median)) if row.estimate else None,
        "interval": interval_text(row.estimate, phrases) if row.estimate else None,
        "runs": row.estimate.runs if row.estimate else 0,
        "failure": None if row.estimate else failure_text(row, phrases),
        "note": row.note if row.estimate else "",
        "quality": quality_text(row.quality),
        "bandwidth": bandwidth_text(row, phrases),
    }


def _failures(campaign: Campaign) -> list[str]:
    """Each different one once."""
    told: dict[str, int] = {}
    for run in counted_runs(campaign):
        if run.outcome == "failed" and run.failure is not None:
            line = f"{run.placement}: {run.failure.message}" + (f" – {run.failure.advice}" * bool(run.failure.advice))
            told[line] = told.get(line, 0) + 1
    return [f"{line} ({count} runs)" if count > 1 else line for line, count in told.items()]


def compare(database: Path, a: tuple[int, str], b: tuple[int, str], language: str) -> dict[str, Any]:
    """The first beside the second, by every figure of the tests that both have."""
    first = _campaign(database, a[0])
    second = first if a[0] == b[0] else _campaign(database, b[0])
    for selected, name in ((first, a[1]), (second, b[1])):
        names = [placement.name for placement in selected.placements]
        if name not in names:
            raise UserError(f"campaign {selected.id} has no placement {name}; it has {', '.join(names)}")
    phrases = _phrases(language)
    pairs = compare_placements((first, a[1]), (second, b[1]), every_metric=True, phrases=phrases)
    told = [_comparison(a, b, pair, phrases) for pair in pairs]
    if not told:
        raise UserError(f"{a[0]}:{a[1]} and {b[0]}:{b[1]} have no test in common; choose two that measured the same")
    sides = (("a", first, a[1]), ("b", second, b[1]))
    medians = {side: _medians(selected, name, phrases) for side, selected, name in sides}
    for row in told:
        for side, known in medians.items():
            row[side] = known.get((row["test"], row["metric"]))
    return {"comparisons": told}


def _comparison(a: tuple[int, str], b: tuple[int, str], comparison: Comparison, phrases: Phrases) -> dict[str, Any]:
    ratio = comparison.verdict.ratio
    return {
        "test": comparison.test.name,
        "metric": comparison.metric.name,
        "title": comparison.metric.title,
        "unit": comparison.metric.unit,
        "decides": comparison.metric.name == HEADLINE[comparison.test.kind],
        "answer": comparison.verdict.answer,
        "reason": comparison.verdict.reason,
        "ratio": ratio and ratio.ratio,
        "low": ratio and ratio.low,
        "high": ratio and ratio.high,
        "differs": list(comparison.differs),
        "sentence": comparison_text(f"{a[0]}:{a[1]}", f"{b[0]}:{b[1]}", comparison, phrases),
    }


def _medians(campaign: Campaign, name: str, phrases: Phrases) -> dict[tuple[str, str], dict[str, Any]]:
    own = (row for row in summarise(campaign, phrases) if row.placement == name)
    return {(row.test.name, row.metric.name): _row(row, phrases) for row in own}


def picture(database: Path, number: int, name: str, form: str, language: str) -> dict[str, Any]:
    """A chart as a file, in the colours of paper."""
    selected = _campaign(database, number)
    phrases = _phrases(language)
    charts = _charts(selected, summarise(selected, phrases), phrases)
    if name not in charts:
        raise UserError(f"campaign {number} has no chart {name}; it has {', '.join(charts) or 'none'}")
    drawn = as_svg(charts[name]).encode() if form == "svg" else as_png(charts[name])
    return {"data": base64.b64encode(drawn).decode()}


def report(database: Path, number: int, language: str) -> dict[str, Any]:
    selected, phrases = _campaign(database, number), Phrases(language)
    rows = summarise(selected, phrases)
    svgs = [as_svg(chart) for chart in _charts(selected, rows, phrases).values()]
    sentence, lines = verdict_sentence(selected, phrases), comparison_lines(selected, phrases)
    page = render_report(selected, rows, sentence, lines, svgs, phrases)
    return {"text": page}


def export(database: Path, wanted: Mapping[str, list[str] | None], form: str) -> dict[str, Any]:
    """`wanted` are the placements of each campaign, all where it is None; `form` one of `formats.FORMATS`, or
    "figures" for a table of medians with their intervals."""
    with Store.open(database) as store:
        selected = [_only(store.campaign(int(number)), names) for number, names in wanted.items()]
    if form == _FIGURES_CSV:
        several = len(selected) > 1
        rows = [
            replace(row, placement=f"{one.id}:{row.placement}") if several else row
            for one in selected
            for row in summarise(one)
        ]
        return {"text": render_csv(rows), "note": ""}
    if form not in FORMATS:
        raise UserError(f"there is no format {form}; choose {', '.join((*FORMATS, _FIGURES_CSV))}")
    exported = export_campaigns(selected, form)
    return {"text": exported.text, "note": exported.note}


def _only(campaign: Campaign, names: list[str] | None) -> Campaign:
    if names is None:
        return campaign
    return replace(
        campaign,
        placements=tuple(placement for placement in campaign.placements if placement.name in names),
        runs=tuple(run for run in campaign.runs if run.placement in names),
    )


def _campaign(database: Path, number: int) -> Campaign:
    with Store.open(database) as store:
        return store.campaign(number)


def _charts(campaign: Campaign, rows: list[ComparisonRow], phrases: Phrases) -> dict[str, Chart]:
    return charts_of(campaign, rows, source=report_title(campaign, rows, phrases), phrases=phrases)


_ANSWERS: Mapping[str, Callable[..., dict[str, Any]]] = {
    calculation.__name__: calculation for calculation in (campaign, compare, export, picture, report, verdict)
}


def answered(line: str) -> dict[str, Any]:
    """Errors that a user can fix are an answer too."""
    what, database, *about = json.loads(line)
    try:
        return _ANSWERS[what](Path(database), *about)
    except TrilithonError as error:
        return {"error": str(error)}


def main() -> None:
    for line in sys.stdin:
        json.dump(answered(line), sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The table at the end of a bench: for the terminal, as Markdown, CSV and JSON lines."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from trilithon.language import Message
from trilithon.measure.metrics import HEADLINE
from trilithon.measure.records import QualityRecord
from trilithon.results.compare import ComparisonRow, Estimate
from trilithon.results.conditions import Conditions, condition_lines
from trilithon.results.phrases import ENGLISH, Phrases
from trilithon.terminal import fitting, plain_console
from trilithon.units import format_number

__all__ = [
    "bandwidth_text",
    "estimate_text",
    "failure_text",
    "interval_text",
    "lacks_results",
    "placement_text",
    "quality_text",
    "render_csv",
    "render_jsonl",
    "render_markdown",
    "render_terminal",
    "sensor_lines",
    "short_title",
]

_VALUE_WIDTH = 27  # "0.469 s, then 8.86 tokens/s"
_JOINED = (
    (Message("Answer"), Message("{first} in {second}"), ("words", "answer_seconds")),
    (Message("First token"), Message("{first}, then {second}"), ("ttft_seconds", "tokens_per_second")),
)
_MAIN = {*HEADLINE.values(), "thinking_seconds", "total_seconds"}
_STYLES = {"broken": "bold red", "degraded": "yellow", "same": "green"}


def interval_text(estimate: Estimate, phrases: Phrases = ENGLISH) -> str:
    """ "51.8–52.6", "two runs" where they were too few for an interval, or "± 0.36" for a table's average."""
    if estimate.deviation is not None:
        return phrases.number(f"± {estimate.deviation:g}")
    if estimate.low is None or estimate.high is None:
        return phrases({1: "one_run", 2: "two_runs"}.get(estimate.runs, "runs"), count=estimate.runs)
    return phrases.number(f"{format_number(estimate.low)}–{format_number(estimate.high)}")


def estimate_text(row: ComparisonRow, phrases: Phrases = ENGLISH) -> str:
    """ "52.1 (51.8–52.6) tokens/s", or why there is none."""
    if row.estimate is None:
        return failure_text(row, phrases)
    unit = "" if row.metric.unit == row.metric.name else f" {phrases.unit(row.metric)}"
    return f"{phrases.number(format_number(row.estimate.median))} ({interval_text(row.estimate, phrases)}){unit}"


def placement_text(row: ComparisonRow, name: str = "", phrases: Phrases = ENGLISH) -> str:
    """The placement's name, with "(stand-in)" where no hardware was measured."""
    return f"{name or row.placement} ({phrases.text(row.simulated)})" if row.simulated else name or row.placement


def failure_text(row: ComparisonRow, phrases: Phrases = ENGLISH) -> str:
    return row.note or phrases("no_result")


def quality_text(quality: QualityRecord | None, phrases: Phrases | None = None) -> str:
    """The verdict, as it is stored or in the words of `phrases`."""
    if quality is None:
        return "–"
    return phrases(f"quality_{quality.verdict}") if phrases else quality.verdict


def bandwidth_text(row: ComparisonRow, phrases: Phrases = ENGLISH) -> str:
    """ "47%", "119.6%: implausible", or nothing where it is unknown."""
    if row.implausible_bandwidth is not None:
        return phrases("implausible", percent=phrases.number(f"{row.implausible_bandwidth:.1%}"))
    return "" if row.fraction_of_bandwidth is None else phrases.number(f"{row.fraction_of_bandwidth:.0%}")


def short_title(row: ComparisonRow, phrases: Phrases = ENGLISH) -> str:
    return phrases.metric(row.metric).split(" (")[0]


def lacks_results(rows: Iterable[ComparisonRow]) -> bool:
    return all(row.estimate is None for row in rows)


def render_terminal(rows: Sequence[ComparisonRow], *, width: int, colour: bool, phrases: Phrases = ENGLISH) -> str:
    """An aligned table that fits `width` columns. A question's lesser figures share one line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for title in ("test", "placement", "figure"):
        table.add_column(phrases(f"head_{title}"), overflow="fold")
    table.add_column(phrases("head_median"), min_width=_VALUE_WIDTH, overflow="fold")
    table.add_column(phrases("head_quality"), overflow="fold")
    shows_bandwidth = any(bandwidth_text(row) for row in rows)
    if shows_bandwidth:
        table.add_column(phrases("head_bandwidth"), justify="right")
    for group in _by_test(rows):
        for cells, quality in _lines(group, phrases):
            verdict = Text(cells[4], style=_STYLES.get(quality, ""))
            table.add_row(*map(Text, cells[:4]), verdict, *map(Text, cells[5:] if shows_bandwidth else ()))
        table.add_section()
    console = plain_console(
        file=StringIO(),
        width=width,
        color_system="standard" if colour else None,
        force_terminal=colour,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(fitting(table, console))
        for remark in _remarks(rows, phrases):
            console.print(Text(remark))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _remarks(rows: Sequence[ComparisonRow], phrases: Phrases) -> list[str]:
    """What became of the other runs, where a figure rests on some only, and what the sensors told."""
    told = (f"{row.placement}, {phrases.test(row.test)}: {row.note}" for row in rows if row.estimate and row.note)
    return [*dict.fromkeys(told), *sensor_lines(rows, phrases)]


def sensor_lines(rows: Iterable[ComparisonRow], phrases: Phrases = ENGLISH) -> list[str]:
    """Sensors while the rows' placements were measured, a line each."""
    by_test = {(row.placement, row.test): row.conditions for row in rows if row.conditions is not None}
    told = [(placement, test, conditions) for (placement, test), conditions in by_test.items()]
    return condition_lines(told, phrases)


def _by_test(rows: Sequence[ComparisonRow]) -> list[list[ComparisonRow]]:
    """The rows of each test together, tests and rows in the order they came."""
    groups: dict[Any, list[ComparisonRow]] = {}
    for row in rows:
        groups.setdefault(row.test, []).append(row)
    return list(groups.values())


def _lines(group: Sequence[ComparisonRow], phrases: Phrases) -> list[tuple[tuple[str, ...], str]]:
    """The lines of one test, each with its verdict: the test is named once, a placement at its first line."""
    runs: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in group:
        runs.setdefault((row.placement, row.model), []).append(row)
    several_models = len({model for _, model in runs}) > 1
    lines: list[tuple[tuple[str, ...], str]] = []
    for (placement, model), rows in runs.items():
        name = placement_text(rows[0], f"{placement} · {model}" if several_models else placement, phrases)
        for figure, value, row in _figures(rows, phrases):
            test = "" if lines else phrases.test(row.test)
            quality = quality_text(row.quality, phrases) if name else ""
            cells = (test, name, figure, value, quality, bandwidth_text(row, phrases))
            lines.append((cells, quality_text(row.quality)))
            name = ""
    return lines


def _figures(rows: Sequence[ComparisonRow], phrases: Phrases) -> list[tuple[str, str, ComparisonRow]]:
    """Title, text and row of each line of one placement in one test."""
    if lacks_results(rows):
        return [("", failure_text(rows[0], phrases), rows[0])]
    lesser = {row.metric.name: row for row in rows if row.test.kind == "question" and row.metric.name not in _MAIN}
    lines = [
        (short_title(row, phrases), estimate_text(row, phrases), row) for row in rows if row.metric.name not in lesser
    ]
    for title, joint, names in _JOINED:
        known = [row for name in names if (row := lesser.get(name)) and row.estimate]
        if known:
            median, *others = (_median_text(row, phrases) for row in known)
            text = phrases.text(joint).format(first=median, second=others[0]) if others else median
            lines.append((phrases.text(title), text, known[0]))
    return lines


def _median_text(row: ComparisonRow, phrases: Phrases) -> str:
    if row.estimate is None:
        return ""
    counted = row.metric.unit == "words"
    median = f"{row.estimate.median:.0f}" if counted else phrases.number(format_number(row.estimate.median))
    return f"{median} {phrases.unit(row.metric)}"


def _flat(row: ComparisonRow) -> Mapping[str, str | float | int | None]:
    estimate, quality = row.estimate, row.quality
    return {
        "placement": row.placement,
        "model": row.model,
        "test": row.test.name,
        "figure": row.metric.name,
        "unit": row.metric.unit,
        "median": estimate.median if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "runs": estimate.runs if estimate else 0,
        "quality": quality_text(quality),
        "divergence": quality.divergence if quality else None,
        "agreement": quality.agreement if quality else None,
        "fraction_of_bandwidth": row.fraction_of_bandwidth,
        "implausible_bandwidth": row.implausible_bandwidth,
        "note": row.note,
        "simulated": row.simulated,
        **_flat_conditions(row.conditions or Conditions()),
    }


def _flat_conditions(conditions: Conditions) -> Mapping[str, str | float | None]:
    clocks = (f"{name} {hertz / 1e6:.0f} MHz" for name, hertz in conditions.clocks_min_hz.items())
    return {
        "celsius_max": conditions.celsius_max,
        "clocks_min": ", ".join(clocks),
        "joules_per_prompt_token": conditions.joules_per_prompt_token,
        "joules_per_generated_token": conditions.joules_per_generated_token,
        "meter": conditions.meter,
    }


def render_csv(rows: Sequence[ComparisonRow]) -> str:
    """One line per figure, full precision; an unknown value is an empty cell."""
    text = StringIO()
    writer = csv.DictWriter(text, list(_flat(rows[0])) if rows else ["placement"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_flat, rows))
    return text.getvalue()


def render_jsonl(rows: Sequence[ComparisonRow]) -> str:
    """One object per line with the columns of the CSV, and the value of each run."""
    objects = (dict(_flat(row)) | {"values": list(row.values)} for row in rows)
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)


def render_markdown(rows: Sequence[ComparisonRow], phrases: Phrases = ENGLISH) -> str:
    heads = ("model", "test", "placement", "figure", "median", "runs", "quality", "of_bandwidth")
    lines: list[tuple[str, ...]] = [
        tuple(phrases(f"head_{name}") for name in heads),
        ("---", "---", "---", "---", "---:", "---:", "---", "---:"),
    ]
    for row in rows:
        runs = str(row.estimate.runs) if row.estimate else "0"
        value = estimate_text(row, phrases) + (f"; {row.note}" if row.estimate and row.note else "")
        cells = (
            row.model,
            phrases.test(row.test),
            placement_text(row, phrases=phrases),
            short_title(row, phrases),
            value,
            runs,
        )
        lines.append((*map(_cell, cells), quality_text(row.quality, phrases), bandwidth_text(row, phrases)))
    told = "".join(f"\n{_cell(line)}\n" for line in sensor_lines(rows, phrases))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + told


def _cell(text: str) -> str:
    """Text that stays inside a Markdown cell and means nothing to Markdown or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + char if char in "\\|*_`[]" else char for char in text)

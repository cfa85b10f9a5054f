"""The page's tables as HTML, by functions that cannot forget to escape. Pure.

A table of fifty lines is one element of NiceGUI's and not five hundred: a visit costs little, and a change is quick."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from trilithon.results.llama_bench.rows import TABLE_SOURCE
from trilithon.results.report.markup import Html, element, joined
from trilithon.web.elements import at
from trilithon.web.quantities import number
from trilithon.web.results.listing import Result, ResultsScreen
from trilithon.web.results.query import Chosen
from trilithon.web.results.wording import figure_text, metric_title, quality_title, sentence, test_title, unit_title
from trilithon.web.texts import Texts

__all__ = [
    "campaign_address",
    "compare_address",
    "comparison_table",
    "figure_tables",
    "options",
    "results_table",
    "sentences",
]

_KINDS = {
    "figure": "figure",
    "median": "number value",
    "interval": "number",
    "unit": "",
    "runs": "number named",
    "bandwidth": "number named",
    "remark": "named",
    "a": "number named",
    "b": "number named",
    "ratio": "number value named",
    "ratio_interval": "number named",
}
"""Classes of a figure's cells by column. Where the heads have no room, "named" ones have the name before them."""
_COLUMNS = ("choose", "campaign", "model", "placement", "figures", "quality", "build", "started")


def campaign_address(campaign: int) -> str:
    return f"/results?{urlencode({'campaign': campaign})}"


def compare_address(a: Chosen, b: Chosen) -> str:
    return f"/results?{urlencode({'a': str(a), 'b': str(b)})}"


def options(values: Iterable[str], chosen: str, all_of_them: str) -> Html:
    """Of a `<select>`; the first is no filter. What an address asks for is offered even if there is none of it."""
    known = list(values)
    known += [chosen] if chosen and chosen not in known else []
    return joined(
        element("option", value or all_of_them, value=value, selected="" if value == chosen else None)
        for value in ("", *known)
    )


def results_table(screen: ResultsScreen, chosen: Container[Chosen], text: Texts) -> Html:
    """The content of the `<table>`: each cell says its column's name too, for screens where a line is a card."""
    titles = {name: text(f"results.column_{name}") for name in _COLUMNS}
    head = element("tr", *(element("th", title, scope="col") for title in titles.values()))
    lines = (
        element(
            "tr",
            *(
                element("td", cell, class_=name, data_title=titles[name])
                for name, cell in _cells(result, chosen, text).items()
            ),
        )
        for result in screen.results
    )
    return joined((element("thead", head), element("tbody", *lines)))


def _cells(result: Result, chosen: Container[Chosen], text: Texts) -> dict[str, Html]:
    this = Chosen(result.campaign, result.placement)
    label = text("results.choose_of", campaign=result.campaign, placement=result.placement)
    tick = element("input", type="checkbox", value=str(this), aria_label=label, checked="" if this in chosen else None)
    label = text("results.campaign_of", campaign=result.campaign)
    link = element("a", str(result.campaign), href=at(campaign_address(result.campaign)), aria_label=label)
    return {
        "choose": tick,
        "campaign": link,
        "model": joined([result.model, *_quantization(result)]),
        "placement": element("span", _breakable(result.placement), class_=f"unit {_unit(result.unit)}"),
        "figures": _figures(result, text),
        "quality": element("span", quality_title(result.verdict or "-", text), class_=f"badge {result.verdict}"),
        "build": joined([result.build]),
        "started": _started(result, text),
    }


def _quantization(result: Result) -> list[Html]:
    if not result.quantization or result.quantization.casefold() in result.model.casefold():
        return []
    return [Html(" "), element("span", result.quantization, class_="muted")]


def _breakable(placement: str) -> Html:
    """A long one goes on in the next line where one of its parts begins."""
    return joined(re.split(r"(?=[/,+:])", placement), Html("<wbr>"))


def _unit(unit: str) -> str:
    return unit if unit in ("cpu", "gpu", "npu") else "other"


def _figures(result: Result, text: Texts) -> Html:
    parts = [
        element(
            "li",
            element("span", test_title(figure.test.name, text), class_="test"),
            " ",
            element("strong", figure_text(figure, text)),
            " ",
            element("span", _runs(figure.runs, result.source, text), class_="muted"),
        )
        for figure in result.figures
    ]
    if result.failed:
        parts.append(element("li", text("results.failed", count=result.failed), class_="bad"))
    return element("ul", *parts)


def _runs(count: int, source: str, text: Texts) -> str:
    if source == TABLE_SOURCE:
        return text("results.rounded")
    return text("results.one_run") if count == 1 else text("results.runs", count=count)


def _started(result: Result, text: Texts) -> Html:
    """An import keeps the date as its tool wrote it."""
    parts = [element("time", result.started[:16].replace("T", " "), datetime=result.started)]
    if result.status != "finished":
        parts.append(element("span", text(f"results.state_{result.status}"), class_="warning"))
    if result.source != "trilithon":
        parts.append(element("span", text("results.source_of", source=result.source), class_="muted"))
    return joined(parts, " ")


def figure_tables(rows: Sequence[Mapping[str, Any]], text: Texts) -> Html:
    """A table per test: every figure of every placement, as the report has it."""
    tests = dict.fromkeys((row["test"], row["question"]) for row in rows)
    return joined(
        _figure_table(test, question, [row for row in rows if (row["test"], row["question"]) == (test, question)], text)
        for test, question in tests
    )


def _figure_table(test: str, question: str, rows: Sequence[Mapping[str, Any]], text: Texts) -> Html:
    names = ["placement", "quality", "figure", "median", "interval", "unit", "runs"]
    names += ["bandwidth"] * any(row["bandwidth"] for row in rows) + ["remark"] * any(row["note"] for row in rows)
    caption = test_title(test, text) + (f": {question}" if question else "")
    bodies = [
        _placement_body(placement, list(own), names, text)
        for placement, own in groupby(rows, key=lambda row: row["placement"])
    ]
    return _table(caption, [text(f"results.column_{name}") for name in names], bodies)


def _placement_body(placement: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], text: Texts) -> Html:
    if all(row["failure"] for row in rows):
        why = element("td", text("results.no_result", reason=rows[0]["failure"]), colspan=str(len(names) - 1))
        return element("tbody", element("tr", element("th", placement, scope="row"), why), class_="failed")
    high = str(len(rows))
    badge = element("span", quality_title(rows[0]["quality"], text), class_=f"badge {rows[0]['quality']}")
    shared = (element("th", placement, scope="rowgroup", rowspan=high), element("td", badge, rowspan=high))
    return element(
        "tbody",
        *(
            element("tr", *(shared if index == 0 else ()), *_figure_cells(row, names, text))
            for index, row in enumerate(rows)
        ),
    )


def _figure_cells(row: Mapping[str, Any], names: Sequence[str], text: Texts) -> list[Html]:
    said = {
        "figure": metric_title(row["metric"], text),
        "median": row["median"] or "–",
        "interval": row["interval"] or "–",
        "unit": unit_title(row["unit"], text),
        "runs": str(row["runs"]),
        "bandwidth": row["bandwidth"],
        "remark": row["note"],
    }
    return [_cell(name, said[name], text) for name in names if name in said]


def _cell(column: str, said: str, text: Texts) -> Html:
    """It says its column's name too, for screens where the heads have no room."""
    return element("td", said, class_=_KINDS[column], data_title=text(f"results.column_{column}"))


def comparison_table(comparisons: Sequence[Mapping[str, Any]], caption: str, text: Texts) -> Html:
    """Every figure of the two beside each other."""
    names = ("figure", "a", "b", "ratio", "ratio_interval", "answer")
    heads = [text(f"results.column_{name}") for name in names]
    lines = (
        element(
            "tr",
            element(
                "th", f"{test_title(comparison['test'], text)}, {metric_title(comparison['metric'], text)}", scope="row"
            ),
            _cell("a", _side(comparison["a"], text), text),
            _cell("b", _side(comparison["b"], text), text),
            _cell("ratio", "–" if comparison["ratio"] is None else number(f"{comparison['ratio']:.3f}", text), text),
            _cell(
                "ratio_interval",
                "–" if comparison["low"] is None else number(f"{comparison['low']:.3f}–{comparison['high']:.3f}", text),
                text,
            ),
            element(
                "td",
                text(f"results.answer_{comparison['answer'].replace(' ', '_')}"),
                class_=f"answer {comparison['answer']}",
            ),
        )
        for comparison in comparisons
    )
    return _table(caption, heads, [element("tbody", *lines)])


def _side(row: Mapping[str, Any] | None, text: Texts) -> str:
    if row is None or row["median"] is None:
        return "–"
    return f"{row['median']} ({row['interval']}) {unit_title(row['unit'], text)}"


def _table(caption: str, heads: Sequence[str], bodies: Sequence[Html]) -> Html:
    """Where the page is too narrow for it, it scrolls by itself; on a phone each line becomes a card."""
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in heads)))
    whole = element("table", element("caption", caption), head, *bodies)
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def sentences(comparisons: Iterable[Mapping[str, Any]], text: Texts) -> Html:
    return joined(element("li", sentence(comparison, text)) for comparison in comparisons)

"""A closer look at one campaign, and at two placements beside each other."""

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from trilithon.errors import TrilithonError
from trilithon.results.report.markup import Html, element, joined, trusted
from trilithon.web.elements import box, words
from trilithon.web.results.calculator import Calculator
from trilithon.web.results.downloads import FORMS, campaign_path, chart_path, report_path
from trilithon.web.results.elements import downloads, markup, way
from trilithon.web.results.query import Chosen
from trilithon.web.results.tables import comparison_table, figure_tables, sentences
from trilithon.web.texts import Texts

__all__ = ["show_campaign", "show_comparison"]


def show_campaign(calculator: Calculator, campaign: int, text: Texts) -> None:
    """What takes its time follows; until then the page says so."""
    way(text("results.back"), "/results", classes="back")
    title = words("h1", text("results.campaign_of", campaign=campaign))
    waiting = words("p", text("results.working"), "muted").props('role="status"')
    root = box(classes="campaign")

    async def fill() -> None:
        try:
            answer = await calculator.ask("campaign", campaign, text.language)
        except TrilithonError as error:
            _complain(waiting, error, text)
            return
        if root.is_deleted:
            return
        waiting.delete()
        title.set_text(f"{text('results.campaign_of', campaign=campaign)}: {answer['title']}")
        with root:
            _campaign(answer, campaign, text)

    ui.timer(0, fill, once=True)


def _complain(place: Any, error: TrilithonError, text: Texts) -> None:
    if not place.is_deleted:
        place.classes(add="bad", remove="muted")
        place.set_text(text("results.problem", reason=str(error)))


def _campaign(details: dict[str, Any], campaign: int, text: Texts) -> None:
    state = [] if details["status"] == "finished" else [text(f"results.state_{details['status']}")]
    words("p", " · ".join([details["started"][:16].replace("T", " "), *state]), "muted")
    words("p", details["board"], "muted").props('lang="en"')
    with box("section", "panel verdict"):
        words("h2", text("results.verdict"))
        words("p", details["sentence"], "sentence")
    with box(classes="line"):
        downloads(text("results.download"), [(form, campaign_path(form, campaign)) for form in FORMS], text)
        report = way(text("results.report"), report_path(campaign, text.language))
        report.props["target"] = "_blank"
    if details["charts"]:
        _charts(details["charts"], campaign, text)
    if details["rows"]:
        with box("section", "panel"):
            words("h2", text("results.figures"))
            markup(figure_tables(details["rows"], text), classes="figures")
    if details["comparisons"]:
        _lines(text("results.pairs"), details["comparisons"], text.language)
    if details["tried"]:
        _lines(text("results.tried"), details["tried"], text.language)
    if details["by_hand"]:
        _lines(text("results.by_hand"), details["by_hand"], "en")
    for name in ("failures", "warnings", "remarks"):
        if details[name]:
            _lines(text(f"results.{name}"), details[name], "en")


def _charts(charts: Sequence[dict[str, Any]], campaign: int, text: Texts) -> None:
    with box("section", "charts") as section:
        words("h2", text("results.charts"))
        with box(classes="chart-grid"):
            for chart in charts:
                with box("figure", "panel chart"):
                    markup(trusted(chart["svg"]), classes="drawing")
                    with box("figcaption"):
                        for form in ("png", "svg"):
                            label = text("results.chart_download", title=chart["title"], form=form.upper())
                            path = chart_path(campaign, chart["name"], form, text.language)
                            way(text(f"results.chart_{form}"), path, label=label).props["download"] = True
    section.props["aria-label"] = text("results.charts")


def _lines(title: str, lines: Sequence[str], language: str) -> None:
    with box("section", "panel"):
        words("h2", title)
        markup(joined(element("li", line) for line in lines), "ul", "told").props(f'lang="{language}"')


def show_comparison(calculator: Calculator, a: Chosen, b: Chosen, text: Texts) -> None:
    way(text("results.back"), "/results", classes="back")
    words("h1", text("results.comparison"))
    waiting = words("p", text("results.working"), "muted").props('role="status"')
    root = box(classes="campaign")

    async def fill() -> None:
        try:
            sides = [a.campaign, a.placement], [b.campaign, b.placement]
            answer = (await calculator.ask("compare", *sides, text.language))["comparisons"]
        except TrilithonError as error:
            _complain(waiting, error, text)
            return
        if not root.is_deleted:
            waiting.delete()
            with root:
                _comparison(answer, a, b, text)

    ui.timer(0, fill, once=True)


def _comparison(comparisons: Sequence[dict[str, Any]], a: Chosen, b: Chosen, text: Texts) -> None:
    sides = (("column_a", a), ("column_b", b))
    markup(
        joined(element("li", element("strong", text(f"results.{name}")), f" {side}") for name, side in sides),
        "ul",
        "sides",
    )
    with box("section", "panel verdict"):
        words("h2", text("results.verdict"))
        markup(sentences([comparison for comparison in comparisons if comparison["decides"]], text), "ul", "sentences")
        facts = dict.fromkeys(fact for comparison in comparisons for fact in comparison["differs"])
        if facts:
            words("p", text("results.differs", facts=", ".join(facts)), "warning")
    with box("section", "panel"):
        words("h2", text("results.every_comparison"))
        caption = text("results.comparison_of", a=a, b=b)
        markup(Html(comparison_table(comparisons, caption, text)), classes="figures")

"""The page of the atlas: an estimate for a model on a chip, and the published measurements with filters and a chart."""

import asyncio
from typing import Any

from nicegui import ui

from trilithon.errors import TrilithonError
from trilithon.estimate.local_atlas import local_rows
from trilithon.estimate.rows import Measurement, atlas
from trilithon.language import translated
from trilithon.results.report.markup import Html
from trilithon.web.atlas.estimate_view import EstimateView
from trilithon.web.atlas.query import FIGURES, FILTERS, AtlasQuery
from trilithon.web.atlas.screen import PAGE_SIZE, AtlasScreen, screen_of
from trilithon.web.atlas.tables import bar_list, options, row_table
from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import at, box, words
from trilithon.web.results.elements import button, markup
from trilithon.web.texts import Texts

__all__ = ["build"]

_CHANGED = "(event) => emit(event.target.value)"


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    ui.add_head_html(f'<link rel="stylesheet" href="{at("/_pages/results.css")}">')
    ui.add_head_html(f'<link rel="stylesheet" href="{at("/_pages/atlas.css")}">')
    request = ui.context.client.request
    query = AtlasQuery.read(dict(request.query_params) if request else {})
    rows, problem = list(await asyncio.to_thread(atlas)), ""
    try:
        rows += await asyncio.to_thread(local_rows, context.configuration.data / "atlas.csv")
    except TrilithonError as error:
        problem = translated(error.args[0], text.language)
    with box(classes="results-page atlas-page"):
        words("h1", text("atlas.title"))
        words("p", text("atlas.lead", count=len(rows)), "muted")
        EstimateView(context, text)
        if problem:
            words("p", problem, "bad").props('role="alert"')
        _AtlasView(rows, query, text).show()


class _AtlasView:
    def __init__(self, rows: list[Measurement], query: AtlasQuery, text: Texts):
        self._rows, self._query, self._text = rows, query, text
        self._selects: dict[str, ui.html] = {}
        with box("section", "panel"):
            words("h2", text("atlas.measurements"))
            with box("form", "filters").on("submit.prevent", lambda: None) as form:
                form.props["aria-label"] = text("atlas.filters")
                for name in (*FILTERS, "figure"):
                    with box("label"):
                        words("span", text(f"atlas.filter_{name}"))
                        select = self._selects[name] = markup(Html(""), "select")
                        select.props["aria-label"] = text(f"atlas.filter_{name}")
                        select.on("change", lambda event, name=name: self._filter(name, event), js_handler=_CHANGED)
                self._clear = ui.link(text("atlas.clear"), "/atlas").classes("clear")
            words("h3", text("atlas.chart"))
            self._chart_note = words("p", classes="muted")
            self._chart = markup(Html(""), "ol", "bars")
            self._chart.props["aria-label"] = text("atlas.chart")
            self._table = markup(Html(""), "table", "atlas")
            with box("nav", "line pager") as pager:
                pager.props["aria-label"] = text("atlas.pager")
                self._previous = button("", lambda: self._turn(-1), icon="chevron_left")
                self._previous.props["aria-label"] = text("atlas.previous")
                self._count = words("span").props('role="status"')
                self._next = button("", lambda: self._turn(1), icon="chevron_right")
                self._next.props["aria-label"] = text("atlas.next")

    def show(self) -> None:
        screen, text = screen_of(self._rows, self._query), self._text
        self._query = query = screen.query
        for name in FILTERS:
            self._selects[name].set_content(
                options(screen.choices[name], getattr(query, name), text("atlas.all"), names=True)
            )
        figures = {text(f"atlas.figure_{name}"): name for name in FIGURES}
        self._selects["figure"].set_content(options(figures, text(f"atlas.figure_{query.figure}")))
        self._chart.set_content(bar_list(screen.bars, text))
        self._chart_note.set_text(self._note(screen))
        self._table.set_content(row_table(screen, text) if screen.rows else "")
        first = query.page * PAGE_SIZE
        count = text("atlas.count", first=first + 1, last=first + len(screen.rows), total=screen.total)
        self._count.set_text(count if screen.rows else text("atlas.none"))
        self._previous.set_enabled(query.page > 0)
        self._next.set_enabled(query.page + 1 < screen.pages)
        self._clear.set_visibility(query.filtered)

    def _note(self, screen: AtlasScreen) -> str:
        if not screen.bars:
            return self._text("atlas.no_bars")
        if screen.groups > len(screen.bars):
            return self._text("atlas.first_bars", count=len(screen.bars), total=screen.groups)
        return self._text("atlas.bars")

    def _filter(self, name: str, event: Any) -> None:
        value = str(event.args)
        if name == "figure":
            value = next((figure for figure in FIGURES if self._text(f"atlas.figure_{figure}") == value), FIGURES[0])
        self._go(self._query.with_changes(**{name: value}))

    def _turn(self, pages: int) -> None:
        self._go(self._query.with_changes(page=max(0, self._query.page + pages)))

    def _go(self, query: AtlasQuery) -> None:
        """The address follows, so that it can be kept and sent."""
        self._query = query
        self.show()
        address = self._query.address()
        ui.navigate.history.replace(at("/atlas") + (f"?{address}" if address else ""))

"""The list of results: filters, one page of it, two ticks to compare, and downloads of what is listed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nicegui import ui

from trilithon.errors import TrilithonError
from trilithon.results.report.markup import Html
from trilithon.web.elements import at, box, words
from trilithon.web.results.downloads import FORMS, export_path
from trilithon.web.results.elements import button, downloads, markup
from trilithon.web.results.listing import ResultsScreen, read_screen
from trilithon.web.results.query import PAGE_SIZE, Chosen, Query
from trilithon.web.results.tables import compare_address, options, results_table
from trilithon.web.texts import Texts

__all__ = ["ResultList"]

_FILTERS = ("model", "quantization", "placement", "build")
_DAYS = ("since", "until")
_CHANGED = "(event) => emit(event.target.value)"
_TICKED = "(event) => emit(event.target.value, event.target.checked)"
_COMPARED = 2


class ResultList:
    def __init__(self, database: Path | None, query: Query, text: Texts):
        self._database, self._query, self._text = database, query, text
        self._chosen: list[Chosen] = []
        self._screen = ResultsScreen(query=query)
        self._selects: dict[str, ui.html] = {}
        with box("section", "panel results-list"):
            self._filter_row()
            self._compare_row()
            self._problem = words("p", classes="bad").props('role="alert"')
            self._empty = words("p", classes="muted")
            self._table = markup(Html(""), "table", "results").on("change", self._ticked, js_handler=_TICKED)
            self._pager()
            self._downloads = box()

    def _filter_row(self) -> None:
        with box("form", "filters").on("submit.prevent", lambda: None) as form:
            form.props["aria-label"] = self._text("results.filters")
            for name in _FILTERS:
                with box("label"):
                    words("span", self._text(f"results.filter_{name}"))
                    select = self._selects[name] = markup(Html(""), "select")
                    select.props["aria-label"] = self._text(f"results.filter_{name}")
                    select.on("change", lambda event, name=name: self._filter(name, event.args), js_handler=_CHANGED)
            for name in _DAYS:
                with box("label"):
                    words("span", self._text(f"results.filter_{name}"))
                    day = box("input").props(f'type="date" value="{getattr(self._query, name)}"')
                    day.props["aria-label"] = self._text(f"results.filter_{name}")
                    day.on("change", lambda event, name=name: self._filter(name, event.args), js_handler=_CHANGED)
            self._clear = ui.link(self._text("results.clear"), "/results").classes("clear")

    def _compare_row(self) -> None:
        with box(classes="line comparing"):
            self._hint = words("p", classes="muted").props('role="status"')
            self._compare = ui.link("", "/results").classes("main-way")
            self._untick = button(self._text("results.compare_clear"), self._untick_all)

    def _pager(self) -> None:
        with box("nav", "line pager") as pager:
            pager.props["aria-label"] = self._text("results.pager")
            self._previous = button("", lambda: self._turn(-1), icon="chevron_left")
            self._previous.props["aria-label"] = self._text("results.previous")
            self._count = words("span").props('role="status"')
            self._next = button("", lambda: self._turn(1), icon="chevron_right")
            self._next.props["aria-label"] = self._text("results.next")

    async def reload(self) -> None:
        """As the database is now."""
        problem = ""
        try:
            self._screen = await asyncio.to_thread(read_screen, self._database, self._query)
        except TrilithonError as error:
            problem, self._screen = str(error), ResultsScreen(query=self._query)
        if not self._table.is_deleted:
            self._query = self._screen.query
            self._problem.set_text(problem)
            self._problem.set_visibility(bool(problem))
            self._show()

    def _show(self) -> None:
        screen, text = self._screen, self._text
        for name, select in self._selects.items():
            known: Sequence[str] = getattr(screen.choices, name)
            select.set_content(options(known, getattr(self._query, name), text("results.all")))
        self._table.set_content(results_table(screen, self._chosen, text))
        for element in (self._table, self._previous, self._next):
            element.set_visibility(bool(screen.results))
        self._clear.set_visibility(self._query.filtered)
        self._empty.set_text(text("results.nothing_found" if self._query.filtered else "results.empty"))
        self._empty.set_visibility(not screen.total)
        first = screen.query.page * PAGE_SIZE
        count_text = text("results.found", first=first + 1, last=first + len(screen.results), total=screen.total)
        self._count.set_text(count_text if screen.total else text("results.found_none"))
        self._previous.set_enabled(screen.query.page > 0)
        self._next.set_enabled(screen.query.page + 1 < screen.pages)
        self._downloads.clear()
        if screen.total:
            with self._downloads:
                paths = [(form, export_path(form, self._query.with_filter())) for form in FORMS]
                downloads(text("results.download_found"), paths, text)
        self._show_chosen()

    def _show_chosen(self) -> None:
        text, names = self._text, [str(choice) for choice in self._chosen]
        both = len(names) == _COMPARED
        said = text("results.compare_one", a=names[0]) if names else text("results.compare_hint")
        self._hint.set_text("" if both else said)
        self._hint.set_visibility(not both and bool(self._screen.results))
        self._compare.set_visibility(both)
        self._untick.set_visibility(bool(names))
        if both:
            self._compare.set_text(text("results.compare_two", a=names[0], b=names[1]))
            self._compare.props["href"] = compare_address(*self._chosen)

    async def _filter(self, name: str, value: Any) -> None:
        self._query = Query.read({**_as_mapping(self._query), name: str(value), "page": "0"})
        await self._go()

    async def _turn(self, pages: int) -> None:
        self._query = Query.read({**_as_mapping(self._query), "page": str(max(0, self._query.page + pages))})
        await self._go()

    async def _go(self) -> None:
        """The address follows, so that it can be kept and sent."""
        address = self._query.address()
        ui.navigate.history.replace(at("/results") + (f"?{address}" if address else ""))
        await self.reload()

    def _ticked(self, event: Any) -> None:
        """Of more than two, the first ticked goes."""
        value, checked = event.args
        one = Chosen.read(str(value))
        if one is None:
            return
        self._chosen = [choice for choice in self._chosen if choice != one] + [one] * bool(checked)
        if len(self._chosen) > _COMPARED:
            self._chosen = self._chosen[-_COMPARED:]
            self._table.set_content(results_table(self._screen, self._chosen, self._text))
        self._show_chosen()

    def _untick_all(self) -> None:
        self._chosen = []
        self._table.set_content(results_table(self._screen, self._chosen, self._text))
        self._show_chosen()


def _as_mapping(query: Query) -> dict[str, str]:
    return {name: str(getattr(query, name)) for name in (*_FILTERS, *_DAYS, "page")}

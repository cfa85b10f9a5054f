"""The models of this machine, a page of them at a time, so that a thousand open as fast as ten."""

import asyncio
from collections.abc import Callable, Sequence

from nicegui import background_tasks, ui

from trilithon.errors import TrilithonError
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.http.errors import api_error_of
from trilithon.web.elements import box, icon_button, words
from trilithon.web.models.facts import Facts, machine_of, read_facts
from trilithon.web.models.library import (
    ROWS_ON_A_PAGE,
    Library,
    ModelListRow,
    Order,
    page_of,
    pages_of,
    read_library,
    selected,
)
from trilithon.web.models.live import Live
from trilithon.web.models.row_view import RowView
from trilithon.web.texts import Texts

__all__ = ["ModelList"]

_ORDERS: tuple[Order, ...] = ("newest", "name", "largest")
_PATIENCE_MS = 250  # after the last letter


class ModelList:
    """`make` builds the view of a row in the place where it is called."""

    def __init__(self, shelf: Catalog, text: Texts, make: Callable[[ModelListRow], RowView]):
        self._shelf, self._text, self._make = shelf, text, make
        self._library = Library((), ())
        self._page = 0
        self._views: dict[str, RowView] = {}
        self._live: Live | None = None
        self._facts: dict[tuple[str, str], Facts] = {}
        self._reading: asyncio.Task[None] | None = None
        with box("section", "panel models"):
            with box(classes="line"):
                words("h2", text("models.list.title"))
                icon_button("refresh", text("models.list.reload"), self.reload)
            with box(classes="line tools"):
                self._filter = ui.input(text("models.list.filter"), on_change=self._refilter)
                self._filter.props(f"outlined dense clearable debounce={_PATIENCE_MS}")
                orders = {order: text(f"models.list.{order}") for order in _ORDERS}
                self._order = ui.select(
                    orders, value="newest", label=text("models.list.order"), on_change=self._refilter
                )
                self._order.props("outlined dense options-dense")
            self._problems = box("ul", "bad problems")
            self._empty = words("p", text("models.reading"), "muted")
            self._list = box("ul", "rows")
            with box(classes="line pager") as self._pager:
                self._back = icon_button("chevron_left", text("models.list.previous"), lambda: self._turn(-1))
                self._count = words("span").props('role="status"')
                self._on = icon_button("chevron_right", text("models.list.next"), lambda: self._turn(+1))

    async def reload(self) -> None:
        """From the disk. What is wrong with the store as a whole is said in place of the list."""
        try:
            self._library = await asyncio.to_thread(read_library, self._shelf)
        except TrilithonError as error:
            self._library = Library((), (str(api_error_of(error)),))
        if not self._list.is_deleted:
            self._facts.clear()
            self._fill()

    def show(self, live: Live) -> None:
        self._live = live
        for view in self._views.values():
            view.show_live(live)

    def view_of(self, name: str) -> RowView | None:
        """None where it is not on this page."""
        return self._views.get(name)

    def _refilter(self) -> None:
        self._page = 0
        self._fill()

    def _turn(self, by: int) -> None:
        self._page += by
        self._fill()

    def _fill(self) -> None:
        matching = selected(self._library.rows, self._filter.value or "", self._order.value)
        self._page = min(max(self._page, 0), pages_of(matching) - 1)
        rows = page_of(matching, self._page)
        self._views.clear()
        self._list.clear()
        with self._list:
            for row in rows:
                view = self._views[row.name] = self._make(row)
                if self._live is not None:
                    view.show_live(self._live)
        self._around(matching, rows)
        if self._reading is not None:
            self._reading.cancel()
        self._reading = background_tasks.create(self._read(list(self._views.values())), name="facts of models")

    def _around(self, matching: Sequence[ModelListRow], rows: Sequence[ModelListRow]) -> None:
        """What stands before and after the rows."""
        filtering = (self._filter.value or "").strip()
        none = self._text("models.list.no_match", words=filtering) if filtering else self._text("models.list.none")
        self._empty.set_text("" if rows else none)
        self._empty.set_visibility(not rows)
        first = self._page * ROWS_ON_A_PAGE + 1
        count = self._text("models.list.count", first=first, last=first + len(rows) - 1, count=len(matching))
        self._count.set_text(count if rows else "")
        self._pager.set_visibility(len(matching) > ROWS_ON_A_PAGE)
        self._back.set_enabled(self._page > 0)
        self._on.set_enabled(self._page < pages_of(matching) - 1)
        self._problems.clear()
        with self._problems:
            for problem in self._library.problems:
                words("li", self._text("models.list.problem", problem=problem))
        self._problems.set_visibility(bool(self._library.problems))

    async def _read(self, views: Sequence[RowView]) -> None:
        """Of the rows that are seen, one after the other: the first ones are filled while the last are read."""
        machine = await asyncio.to_thread(machine_of, self._shelf)
        for view in views:
            entry = view.row.entry
            key = entry.name, entry.digest
            if view.row.missing:
                view.show_facts(Facts(problem=" "))
                continue
            if key not in self._facts:
                self._facts[key] = await asyncio.to_thread(read_facts, entry, self._shelf, machine)
            if view.root.is_deleted:
                return
            view.show_facts(self._facts[key])

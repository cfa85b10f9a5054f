"""The page of models: memory, pulls and the list, kept up to date by one timer that looks and tells only changes."""

from collections.abc import Awaitable

from nicegui import ui

from trilithon.errors import TrilithonError
from trilithon.serve.catalog.pulls import PullState
from trilithon.serve.http.errors import api_error_of
from trilithon.serve.removal import remove
from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import at, box, words
from trilithon.web.models.acts import ACTS, Act
from trilithon.web.models.details_view import DetailsView
from trilithon.web.models.library import ModelListRow
from trilithon.web.models.list_view import ModelList
from trilithon.web.models.live import Live, read_live
from trilithon.web.models.memory_view import MemoryView
from trilithon.web.models.pulls_view import PullsView
from trilithon.web.models.removal_view import RemovalView
from trilithon.web.models.row_view import RowView
from trilithon.web.quantities import size
from trilithon.web.texts import Texts

__all__ = ["build"]

_LOOK_SECONDS = 0.5
_TOLD: dict[Act, str] = {"load": "loaded", "unload": "unloaded", "pin": "pinned", "unpin": "unpinned"}


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    page = _ModelsPage(context, session, text)
    await page.list.reload()
    ui.timer(_LOOK_SECONDS, page.look)


class _ModelsPage:
    def __init__(self, context: AppContext, session: PageSession, text: Texts):
        self._service, self._session, self._text = context.service, session, text
        self._live: Live | None = None
        self._pulls: tuple[PullState, ...] = ()
        ui.add_head_html(f'<link rel="stylesheet" href="{at("/_pages/models.css")}">')
        with box(classes="models-page") as self._root:
            words("h1", text("models.title"))
            self._told = words("p", classes="visually-hidden").props('role="status"')
            self._memory = MemoryView(text)
            self._pulling = PullsView(context.service, text)
            self.list = ModelList(context.service.shelf, text, self._row)
            self._details = DetailsView(context.service.shelf, text, self.list.reload)
            self._removal = RemovalView(text, self._remove)

    def _row(self, row: ModelListRow) -> RowView:
        return RowView(row, self._text, self._do, self._details.open, self._ask)

    async def look(self) -> None:
        live, pulls = read_live(self._service.pool), self._service.pulls.states()
        if live != self._live:
            self._live = live
            self._memory.show(live)
            self.list.show(live)
        if pulls != self._pulls:
            ended = _done(pulls) - _done(self._pulls)
            self._pulls = pulls
            self._pulling.show(pulls)
            if ended:
                await self.list.reload()

    async def _do(self, act: Act, name: str) -> None:
        await self._carried_out(name, ACTS[act](self._service, name, self._session.caller), f"models.told.{_TOLD[act]}")

    async def _carried_out(self, name: str, work: Awaitable[None], told: str) -> None:
        """It goes on when the page is shut; what went wrong is said beside the model."""
        self._mark(name, busy=True)
        problem = ""
        try:
            await work
        except TrilithonError as error:
            problem = str(api_error_of(error))
        self._mark(name, busy=False)
        self._say(name, problem, self._text(told, name=name))

    def _mark(self, name: str, *, busy: bool) -> None:
        view = self.list.view_of(name)
        if view is not None and not self._root.is_deleted:
            view.set_busy(busy=busy)
            view.complain("")

    def _say(self, name: str, problem: str, told: str) -> None:
        if self._root.is_deleted:
            return
        view = self.list.view_of(name)
        if view is not None:
            view.complain(problem)
        self._told.set_text(problem or told)

    def _ask(self, row: ModelListRow) -> None:
        loaded = self._live is not None and bool(self._live.of(row.name))
        self._removal.open(row, loaded=loaded)

    async def _remove(self, row: ModelListRow) -> None:
        problem, told = "", ""
        try:
            removal = await remove(self._service, row.entry)
            told = self._text("models.remove.done", name=row.name, size=size(removal.freed_bytes, self._text))
            told = " ".join((told, *removal.kept))
        except TrilithonError as error:
            problem = str(api_error_of(error))
        if not self._root.is_deleted:
            await self.list.reload()
        self._say(row.name, problem, told)


def _done(states: tuple[PullState, ...]) -> set[int]:
    return {state.number for state in states if state.outcome == "done"}

"""The bench that runs, or the last one: how far it is, and its verdict when it is over."""

import asyncio

from nicegui import ui

from trilithon.errors import TrilithonError
from trilithon.serve.catalog.catalog import Catalog
from trilithon.web.elements import box, words
from trilithon.web.quantities import duration
from trilithon.web.results.bench_run import BenchState
from trilithon.web.results.elements import button, way
from trilithon.web.results.service import ResultsService
from trilithon.web.results.tables import campaign_address
from trilithon.web.results.wording import step_text
from trilithon.web.texts import Texts

__all__ = ["ProgressView"]


class ProgressView:
    def __init__(self, results_service: ResultsService, shelf: Catalog, text: Texts):
        self._results_service, self._shelf, self._text = results_service, shelf, text
        with box("section", "panel running") as self._root:
            self._title = words("h2")
            self._doing = words("p").props('role="status"')
            self._bar = ui.linear_progress(0, show_value=False, color=None).classes("bar")
            self._amount = words("p", classes="muted amount")
            self._stop = button(text("results.bench_stop"), self._cancel, icon="stop")
            self._end = box(classes="end")
        self._root.set_visibility(False)

    async def show(self, state: BenchState) -> None:
        text = self._text
        title = text("results.bench_of", name=state.wish.name)
        self._root.set_visibility(True)
        self._title.set_text(title)
        self._bar.props["aria-label"] = title
        self._doing.set_text(self._said(state))
        self._doing.classes(add="bad" if state.problem else "", remove="" if state.problem else "bad")
        self._bar.set_value(state.runs_done / state.runs_planned if state.runs_planned else 0.0)
        self._amount.set_text(self._far(state))
        for element in (self._bar, self._amount, self._stop):
            element.set_visibility(not state.over)
        self._end.clear()
        if state.over:
            await self._show_end(state)

    def _said(self, state: BenchState) -> str:
        match state.phase:
            case "unloading":
                return self._text("results.bench_unloading")
            case "running":
                return step_text(state.text, self._text) if state.text else self._text("results.bench_starting")
            case "failed":
                return self._text("results.bench_failed", reason=state.problem)
            case "finished" | "cancelled":
                return self._text(f"results.bench_{state.phase}")

    def _far(self, state: BenchState) -> str:
        """ "run 3 of 10 · about 0:40 left"."""
        if not state.runs_planned:
            return ""
        number = min(state.runs_done + 1, state.runs_planned)
        parts = [self._text("results.bench_runs", number=number, planned=state.runs_planned)]
        if state.remaining_seconds is not None:
            parts.append(self._text("results.bench_left", time=duration(state.remaining_seconds, self._text)))
        return " · ".join(parts)

    async def _show_end(self, state: BenchState) -> None:
        if state.campaign is None:
            return
        try:
            verdict = await self._results_service.calculator.ask("verdict", state.campaign, self._text.language)
            said, classes, language = verdict["sentence"], "sentence", self._text.language
        except TrilithonError as error:
            said, classes, language = str(error), "bad", "en"
        planned = await asyncio.to_thread(_planned, state, self._shelf)
        if not self._end.is_deleted:
            self._end.clear()
            with self._end:
                words("p", said, classes).props(f'lang="{language}"')
                if planned:
                    words("p", self._text("results.bench_planned", placement=planned))
                    way(self._text("results.bench_plans"), "/models")
                way(self._text("results.bench_look", campaign=state.campaign), campaign_address(state.campaign))

    def _cancel(self) -> None:
        self._results_service.bench.cancel()
        self._doing.set_text(self._text("results.bench_stopping"))
        self._stop.set_visibility(False)


def _planned(state: BenchState, shelf: Catalog) -> str:
    """The placement that the campaign made the model's plan; empty where it made none."""
    try:
        plan = shelf.outlook(shelf.find(state.wish.name)).plan
    except TrilithonError:  # the model is gone, or its file: there is nothing to tell
        return ""
    return plan.placement if plan is not None and plan.campaign == state.campaign else ""

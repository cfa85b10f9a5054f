"""Starting a bench and watching it: the form, the question whether models may be unloaded, the progress."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import ui

from trilithon.engines.placing import usable_here
from trilithon.errors import TrilithonError, UserError
from trilithon.results.report.markup import element, joined
from trilithon.serve.catalog.catalog import Catalog
from trilithon.web.context import AppContext
from trilithon.web.elements import box, words
from trilithon.web.results.bench_run import TESTS, BenchState, Wish
from trilithon.web.results.elements import button, markup
from trilithon.web.results.progress_view import ProgressView
from trilithon.web.results.service import results_service_of
from trilithon.web.texts import Texts

__all__ = ["BenchView"]

_LOOK_SECONDS = 0.3
_MOST_ROUNDS = 1000
_USUAL = ("pp", "tg", "question")


class BenchView:
    """`ended` is awaited when a bench that somebody watches here is over."""

    def __init__(self, context: AppContext, text: Texts, ended: Callable[[], Awaitable[None]]):
        self._context, self._text, self._ended = context, text, ended
        self._results_service = results_service_of(context)
        self._shown: BenchState | None = None
        self._progress = ProgressView(self._results_service, context.service.shelf, text)
        with box("details", "panel folded bench") as self._form:
            with box("summary"):
                words("h2", text("results.bench"))
            words("p", text("results.bench_lead"), "muted")
            self._placements: dict[str, ui.checkbox] = {}
            self._fields()
        self._asking = _ConfirmDialog(text)
        ui.timer(_LOOK_SECONDS, self._look)

    def _fields(self) -> None:
        text = self._text
        with box("form", "bench-form").on("submit.prevent", self._start):
            self._model = ui.select([], label=text("results.bench_model"), on_change=self._model_chosen)
            self._model.props("outlined dense options-dense")
            with box("fieldset"):
                words("legend", text("results.bench_placements"))
                words("p", text("results.bench_every"), "muted")
                self._ticks = box(classes="ticks")
                self._more = _field(text("results.bench_more"), text("results.bench_more_hint"))
            with box("fieldset"):
                words("legend", text("results.bench_tests"))
                with box(classes="ticks"):
                    self._tests = {test: _tick(text(f"results.bench_test_{test}"), on=test in _USUAL) for test in TESTS}
                with box(classes="pair"):
                    self._prompt = _field(text("results.bench_prompt"), "", "512")
                    self._generated = _field(text("results.bench_generated"), "", "128")
            with box(classes="pair"):
                self._rounds = _field(text("results.bench_repetitions"), text("results.bench_repetitions_hint"))
                self._budget = _field(text("results.bench_budget"), text("results.bench_budget_hint"))
            self._problem = words("p", classes="bad").props('role="alert"')
            start = button(text("results.bench_start"), lambda: None, icon="speed", classes="main-act")
            start.props("type=submit")
        self._complain("")

    async def fill(self) -> None:
        """With the models that are here."""
        entries = await asyncio.to_thread(self._context.service.shelf.models)
        names = [entry.name for entry in entries]
        self._model.set_options(names, value=names[0] if names else None)
        if not names:
            self._complain(self._text("results.bench_no_models"))

    async def _model_chosen(self) -> None:
        name, placements, problem = self._model.value, [], ""
        try:
            placements = await asyncio.to_thread(_placements, self._context.service.shelf, name) if name else []
        except TrilithonError as error:
            problem = str(error)
        if self._ticks.is_deleted or self._model.value != name:
            return
        self._ticks.clear()
        with self._ticks:
            self._placements = {spelled: _tick(spelled) for spelled in placements}
        self._complain(problem)

    async def _start(self) -> None:
        try:
            wish = await self._wish()
            loaded = self._results_service.bench.loaded()
            if loaded and not self._results_service.bench.running and not await self._asking.agreed(loaded):
                return
            self._results_service.bench.start(wish)
        except TrilithonError as error:
            self._complain(str(error))
            return
        self._complain("")
        self._form.run_method("removeAttribute", "open")
        await self._look()

    async def _wish(self) -> Wish:
        """Raises UserError for a field that is no good, ModelError for a model that went away."""
        if not self._model.value:
            raise UserError(self._text("results.bench_no_models"))
        shelf, name = self._context.service.shelf, self._model.value
        file = await asyncio.to_thread(lambda: shelf.file(shelf.find(name)))
        ticked = [spelled for spelled, tick in self._placements.items() if tick.value]
        return Wish(
            model=file.path,
            name=name,
            placements=(*ticked, *(self._more.value or "").split()),
            tests=tuple(test for test, tick in self._tests.items() if tick.value),
            prompt=(self._prompt.value or "").strip(),
            generated=(self._generated.value or "").strip(),
            repetitions=self._repetitions(),
            budget=(self._budget.value or "").strip(),
        )

    def _repetitions(self) -> int | None:
        said = (self._rounds.value or "").strip()
        if not said:
            return None
        if not (said.isascii() and said.isdecimal() and 1 <= int(said[:9]) <= _MOST_ROUNDS):
            raise UserError(self._text("results.bench_repetitions_wrong"))
        return int(said)

    def _complain(self, problem: str) -> None:
        self._problem.set_text(problem)
        self._problem.set_visibility(bool(problem))

    async def _look(self) -> None:
        """Only what has changed goes to the browser."""
        state = self._results_service.bench.state
        if state is None or state == self._shown:
            return
        was, self._shown = self._shown, state
        await self._progress.show(state)
        if state.over and was is not None and not was.over:
            await self._ended()


class _ConfirmDialog:
    """Whether the models that are loaded may go."""

    def __init__(self, text: Texts):
        with ui.dialog() as self._dialog, box("div", "panel asking"):
            self._dialog.props["aria-label"] = text("results.bench_agree_title")
            words("h2", text("results.bench_agree_title"))
            words("p", text("results.bench_agree_lead"))
            self._list = box("ul")
            with box(classes="line"):
                button(text("results.bench_decline"), lambda: self._dialog.submit(False))
                button(text("results.bench_agree"), lambda: self._dialog.submit(True), classes="main-act")

    async def agreed(self, loaded: tuple[str, ...]) -> bool:
        self._list.clear()
        with self._list:
            markup(joined(element("li", key) for key in loaded))
        return bool(await self._dialog)


def _tick(label: str, *, on: bool = False) -> ui.checkbox:
    made = ui.checkbox(label, value=on)
    made.props["aria-label"] = label
    return made


def _field(label: str, hint: str, value: str = "") -> ui.input:
    field = ui.input(label, value=value).props("outlined dense maxlength=400 spellcheck=false autocapitalize=off")
    if hint:
        field.props["hint"] = hint
    return field


def _placements(shelf: Catalog, name: str) -> list[str]:
    """Every way to run it here, and the one that it is served on."""
    entry = shelf.find(name)
    served = shelf.outlook(entry).placement
    usable = [spelling.name for spelling in usable_here([shelf.file(entry)], shelf.configuration)]
    return [*usable, *([served] if served and served not in usable else [])]

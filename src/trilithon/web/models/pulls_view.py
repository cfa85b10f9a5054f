"""Fetching models: a name to give, and every pull of this server, whoever asked for it and whichever page is open."""

from collections.abc import Callable

from nicegui import ui

from trilithon.serve.catalog.pulls import PullState
from trilithon.serve.http.errors import ApiError
from trilithon.serve.service import Service
from trilithon.web.elements import box, words
from trilithon.web.models.elements import button
from trilithon.web.models.progress import progress_of
from trilithon.web.texts import Texts

__all__ = ["PullsView"]


class PullsView:
    def __init__(self, service: Service, text: Texts):
        self._service, self._text = service, text
        self._cards: dict[int, _Card] = {}
        self._shown: dict[int, PullState] = {}
        with box("section", "panel pulls"):
            words("h2", text("models.pull.title"))
            with box("form", "ask").on("submit.prevent", self._ask):
                self._name = ui.input(text("models.pull.name")).props("outlined dense clearable maxlength=400")
                self._name.props["hint"] = text("models.pull.hint")
                self._name.props["spellcheck"] = "false"
                self._name.props["autocapitalize"] = "off"
                start = ui.button(text("models.pull.start"), icon="download", color=None)
                start.props("unelevated no-caps type=submit").classes("main-act")
            self._problem = words("p", classes="bad problem").props('role="alert"')
            self._list = box("ul", "cards")
            self._list.props["aria-label"] = text("models.pull.list")
        self._complain("")

    def show(self, states: tuple[PullState, ...]) -> None:
        """Only what has changed goes to the browser."""
        numbers = {state.number for state in states}
        for number in set(self._cards) - numbers:
            self._cards.pop(number).root.delete()
            del self._shown[number]
        for state in reversed(states):
            if state.number not in self._cards:
                with self._list:
                    self._cards[state.number] = _Card(state, self._service, self._text, self._start)
                self._cards[state.number].root.move(target_index=0)
            if self._shown.get(state.number) != state:
                self._cards[state.number].show(state)
                self._shown[state.number] = state
        self._list.set_visibility(bool(states))

    def _ask(self) -> None:
        name = (self._name.value or "").strip()
        if self._start(name):
            self._name.value = ""

    def _start(self, name: str) -> bool:
        """Goes on also when this page is closed. What had the name may be loaded: it goes when nobody works with it."""
        pool = self._service.pool
        try:
            if not name:
                raise ApiError(self._text("models.pull.empty"), status=400)
            self._service.pulls.start(name, lambda local: pool.keep(local, 0))
        except ApiError as problem:
            self._complain(str(problem))
            return False
        self._complain("")
        self.show(self._service.pulls.states())
        return True

    def _complain(self, problem: str) -> None:
        self._problem.set_text(problem)
        self._problem.set_visibility(bool(problem))


class _Card:
    """One pull. `start` begins one anew, under the name that was asked for."""

    def __init__(self, state: PullState, service: Service, text: Texts, start: Callable[[str], bool]):
        self._pulls, self._text, self._start = service.pulls, text, start
        self._number, self._name = state.number, state.name
        with box("li", "card") as self.root:
            with box(classes="line"):
                words("strong", state.name, "name")
                self._doing = words("span").props('role="status"')
            self._bar = ui.linear_progress(0, show_value=False, color=None).classes("bar")
            self._bar.props["aria-label"] = text("models.pull.progress_of", name=state.name)
            with box(classes="line"):
                self._amount = words("span", classes="muted amount")
                with box(classes="acts"):
                    self._stop = self._button("stop", "stop", lambda: self._pulls.stop(self._number))
                    self._again = self._button("again", "replay", self._go_on)
                    self._dismiss = self._button("dismiss", "close", lambda: self._pulls.forget(self._number))

    def _button(self, key: str, icon: str, act: Callable[[], object]) -> ui.button:
        label = self._text(f"models.pull.{key}_of", name=self._name)
        return button(self._text(f"models.pull.{key}"), label, act, icon=icon)

    def _go_on(self) -> None:
        if self._start(self._name):
            self._pulls.forget(self._number)

    def show(self, state: PullState) -> None:
        progress, runs = progress_of(state, self._text), state.outcome == "running"
        self._doing.set_text(progress.doing)
        self._amount.set_text(progress.amount)
        self._bar.set_visibility(runs)
        self._bar.props["indeterminate"] = progress.fraction is None
        self._bar.set_value(progress.fraction or 0.0)
        for label, wanted in ((self._amount, state.outcome == "failed"), (self._doing, state.outcome == "failed")):
            label.classes(add="bad" if wanted else "", remove="" if wanted else "bad")
        self._stop.set_visibility(runs)
        self._stop.set_enabled(not state.stopping)
        self._again.set_visibility(state.outcome in ("failed", "stopped"))
        self._dismiss.set_visibility(not runs)

"""How fast a model would be on a chip: the question before one is downloaded, or a board is bought."""

import asyncio
from typing import Any

from trilithon.board.chips import Chip, chips
from trilithon.errors import TrilithonError
from trilithon.estimate.answer import SpeedEstimate, estimates
from trilithon.estimate.subjects.stored import stored_subject
from trilithon.estimate.subjects.subject import subject_named
from trilithon.estimate.terms import machine_rates
from trilithon.language import translated
from trilithon.results.report.markup import Html
from trilithon.web.atlas.tables import estimate_table, options
from trilithon.web.context import AppContext
from trilithon.web.elements import box, words
from trilithon.web.quantities import number, quantity
from trilithon.web.results.elements import button, markup
from trilithon.web.texts import Texts

__all__ = ["EstimateView"]

_GIBIBYTES = (1, 2, 4, 8, 16, 24, 32, 64)
_CHANGED = "(event) => emit(event.target.value)"


class EstimateView:
    def __init__(self, context: AppContext, text: Texts):
        self._context, self._text = context, text
        self._chips: dict[str, Chip | None] = {text("atlas.every_chip"): None}
        self._chips |= {chip.name: chip for chip in chips().values() if machine_rates(chip.name)}
        self._sizes = {quantity(f"{count} GiB", text): count << 30 for count in _GIBIBYTES}
        self._name, self._chip = "", text("atlas.every_chip")
        self._room: int | None = None
        with box("section", "panel"):
            words("h2", text("atlas.estimate"))
            words("p", text("atlas.estimate_lead"), "muted")
            with box("form", "filters").on("submit.prevent", self.show) as form:
                form.props["aria-label"] = text("atlas.estimate")
                with box("label"):
                    words("span", text("atlas.estimate_model"))
                    field = box("input").props('type="text" maxlength="200" spellcheck="false" autocapitalize="off"')
                    field.on("input", self._enter, js_handler=_CHANGED)
                    field.props["aria-label"] = text("atlas.estimate_model")
                self._select("atlas.filter_chip", options(self._chips, self._chip), self._choose_chip)
                sizes = options(self._sizes, "", text("atlas.any_memory"))
                self._select("atlas.estimate_memory", sizes, self._choose_memory)
                button(text("atlas.estimate_do"), self.show, classes="main-act").props("type=submit")
            self._problem = words("p", classes="bad").props('role="alert"')
            self._title = words("p").props('role="status"')
            self._table = markup(Html(""), "table", "atlas estimates")

    def _select(self, key: str, choices: Html, choose: Any) -> None:
        with box("label"):
            words("span", self._text(key))
            select = markup(choices, "select").on("change", choose, js_handler=_CHANGED)
            select.props["aria-label"] = self._text(key)

    def _enter(self, event: Any) -> None:
        self._name = str(event.args).strip()

    def _choose_chip(self, event: Any) -> None:
        self._chip = str(event.args)

    def _choose_memory(self, event: Any) -> None:
        self._room = self._sizes.get(str(event.args))

    async def show(self) -> None:
        chip, room = self._chips.get(self._chip), self._room
        problem, title, rows = "", "", list[SpeedEstimate]()
        try:
            title, rows = await asyncio.to_thread(self._estimated, self._name, chip)
        except TrilithonError as error:
            problem = translated(error.args[0], self._text.language)
        if self._table.is_deleted:
            return
        self._problem.set_text(problem)
        self._title.set_text(title)
        self._table.set_content(estimate_table(rows, room, self._text) if rows else "")

    def _estimated(self, name: str, chip: Chip | None) -> tuple[str, list[SpeedEstimate]]:
        """Asks no server, and opens no file. Raises UserError."""
        shelf = self._context.service.shelf
        manifest = next((entry.manifest for entry in shelf.models() if entry.name == name), None)
        subject = (stored_subject(manifest, chip.platform if chip else "") if manifest else None) or subject_named(name)
        chosen = [chip] if chip else [known for known in self._chips.values() if known]
        billions = number(f"{subject.size.parameters / 1e9:.3g}", self._text)
        return self._text("atlas.estimate_of", model=subject.size.key, billions=billions), estimates(subject, chosen)

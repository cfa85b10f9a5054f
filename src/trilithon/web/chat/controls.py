"""Above a conversation: which model answers, what would run it here, its settings, and two placements side by side."""

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nicegui import ui

from trilithon.engines.placement_spec import parse_placement
from trilithon.errors import TrilithonError
from trilithon.results.speeds import last_speeds
from trilithon.serve.catalog.catalog import CatalogEntry, Outlook
from trilithon.web.chat.tree import ChatSettings, Conversation
from trilithon.web.context import AppContext
from trilithon.web.elements import box, icon_button
from trilithon.web.quantities import number
from trilithon.web.texts import Texts

__all__ = ["Controls"]

# name: lowest, highest, step
_NUMBERS: dict[str, tuple[float, float, float]] = {
    "temperature": (0, 2, 0.1),
    "top_p": (0.01, 1, 0.05),
    "max_tokens": (1, 1 << 20, 1),
    "seed": (0, (1 << 32) - 1, 1),
    "context": (256, 1 << 20, 256),
}
_WHOLE = ("max_tokens", "seed", "context")


class Controls:
    def __init__(self, context: AppContext, text: Texts, *, export: Callable[[str], None]):
        self._context, self._text = context, text
        self._entries: dict[str, CatalogEntry] = {}
        self._outlook: Outlook | None = None
        self._offered: tuple[str, ...] = ()
        with box(classes="choices-row"):
            self._model = ui.select([], label=text("chat.model"), on_change=self._chosen).classes("model")
            self._model.props("dense outlined options-dense")
            self._model.props["aria-label"] = text("chat.model")
            self._line = ui.label().classes("outlook muted")
            icon_button("tune", text("chat.settings"), self._toggle(lambda: self._settings))
            icon_button("compare", text("chat.compare"), self._toggle(lambda: self._compare))
            with icon_button("download", text("chat.export"), lambda: None), ui.menu() as menu:
                menu.props["aria-label"] = text("chat.export")
                ui.menu_item("Markdown", lambda: export("md"))
                ui.menu_item("JSON", lambda: export("json"))
        self._fields: dict[str, Any] = {}
        with box(classes="settings panel") as self._settings:
            self._fields["system"] = ui.textarea(text("chat.system")).props("autogrow dense").classes("broad")
            for name, (least, most, step) in _NUMBERS.items():
                self._fields[name] = ui.number(text(f"chat.{name}"), min=least, max=most, step=step)
                self._fields[name].props("dense clearable")
        with box(classes="settings panel sides") as self._compare:
            ui.label(text("chat.compare_how")).classes("broad muted")
            self._sides = [ui.input(text(f"chat.{side}")).props("dense") for side in ("first_side", "second_side")]
        self._settings.set_visibility(False)
        self._compare.set_visibility(False)

    def _toggle(self, part: Callable[[], ui.element]) -> Callable[[], None]:
        def toggle() -> None:
            part().set_visibility(not part().visible)

        return toggle

    async def load(self) -> None:
        entries = await asyncio.to_thread(self._context.service.shelf.models)
        self._entries = {entry.name: entry for entry in entries}
        loaded = [model.key for model in self._context.service.pool.loaded() if model.key in self._entries]
        offered = [name for name in (*loaded, *self._entries) if not self._entries[name].manifest.synthetic]
        self._model.set_options(list(self._entries), value=next(iter(offered), None))
        if not self._entries:
            self._line.set_text(self._text("chat.no_models"))

    def show(self, conversation: Conversation) -> None:
        """As it was when it was last asked something."""
        if conversation.model in self._entries:
            self._model.set_value(conversation.model)
        for field in fields(ChatSettings):
            self._fields[field.name].set_value(getattr(conversation.wishes, field.name))

    @property
    def model(self) -> str:
        return str(self._model.value or "")

    def wishes(self) -> ChatSettings:
        values = {name: field.value for name, field in self._fields.items()}
        values |= {name: int(values[name]) for name in _WHOLE if values[name] is not None}
        return ChatSettings(**{**values, "system": values["system"] or ""})

    def sees(self) -> bool:
        """Whether the model that is chosen sees pictures."""
        return self._outlook is not None and self._outlook.file.vision_encoder is not None

    def placements(self) -> list[str]:
        """Where the next question goes: empty is the server's choice. Two while comparing."""
        return [str(side.value).strip() for side in self._sides] if self._compare.visible else [""]

    def in_turn(self) -> bool:
        """Whether the two share a unit that has one tenant."""
        try:
            units = [parse_placement(placement).unit for placement in self.placements() if placement]
        except TrilithonError:
            return False
        return units.count("npu") > 1

    async def _chosen(self) -> None:
        """Say what would run it, once that is known."""
        name = self.model
        if name not in self._entries:
            return
        self._line.set_text("…")
        self._outlook = None
        try:
            line = await asyncio.to_thread(self._about, self._entries[name])
        except TrilithonError as error:
            line = str(error)
        if self.model == name and not self._line.is_deleted:
            self._line.set_text(line)
            for side, placement in zip(self._sides, (*self._offered[:2], *self._offered[:1], ""), strict=False):
                side.set_value(placement)
                side.set_autocomplete(list(self._offered))

    def _about(self, entry: CatalogEntry) -> str:
        shelf = self._context.service.shelf
        outlook = shelf.outlook(entry)
        self._outlook, self._offered = outlook, shelf.offered(entry)
        if outlook.refusal:
            return outlook.refusal
        if outlook.file.kind in ("embedding", "reranker"):
            return self._text("chat.silent")
        warning = (self._text("chat.base"),) if outlook.file.kind == "base" else ()
        return " ".join((self._speed_line(outlook), *warning))

    def _speed_line(self, outlook: Outlook) -> str:
        database = self._context.store
        speeds = None
        if database is not None:
            speeds = last_speeds(database, outlook.file.sha256, outlook.placement, self._context.board)
        if speeds is None or speeds.decode is None:
            return self._text("chat.runs", placement=outlook.placement)
        return self._text("chat.runs_at", placement=outlook.placement, rate=number(f"{speeds.decode:.1f}", self._text))

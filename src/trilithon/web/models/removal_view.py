"""A model is removed only by who was asked once more."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from trilithon.web.elements import box, words
from trilithon.web.models.elements import button
from trilithon.web.models.library import ModelListRow
from trilithon.web.quantities import size
from trilithon.web.texts import Texts

__all__ = ["RemovalView"]


class RemovalView:
    """`remove` is called with the row when the answer is yes."""

    def __init__(self, text: Texts, remove: Callable[[ModelListRow], Awaitable[None]]):
        self._text, self._remove = text, remove
        with ui.dialog() as self._dialog, ui.card().classes("asking") as self._card:
            pass
        self._dialog.on("hide", self._card.clear)

    def open(self, row: ModelListRow, *, loaded: bool) -> None:
        self._card.clear()
        title = self._text("models.remove.title", name=row.name)
        with self._card:
            words("h2", title)
            words("p", self._text("models.remove.text", size=size(row.entry.size_bytes, self._text)))
            if loaded:
                words("p", self._text("models.remove.loaded"), "warning")
            with box(classes="acts"):
                keep = self._text("models.remove.cancel")
                button(keep, keep, self._dialog.close).props("autofocus")
                label = self._text("models.do.remove_of", name=row.name)
                button(self._text("models.do.remove"), label, lambda: self._sure(row), icon="delete", classes="bad")
        self._dialog.props["aria-label"] = title
        self._dialog.open()

    async def _sure(self, row: ModelListRow) -> None:
        self._dialog.close()
        await self._remove(row)

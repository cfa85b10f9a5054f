"""The list of conversations."""

from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui

from trilithon.web.chat.conversations import Heading
from trilithon.web.elements import box, icon_button, words
from trilithon.web.texts import Texts

__all__ = ["Sidebar"]


class Sidebar:
    def __init__(
        self,
        text: Texts,
        *,
        new: Callable[[], Awaitable[None]],
        show: Callable[[str], Awaitable[None]],
        rename: Callable[[str, str], Awaitable[None]],
        remove: Callable[[str], Awaitable[None]],
    ):
        self._text, self._show, self._rename, self._remove = text, show, rename, remove
        with box("nav", "side") as self._root:
            self._root.props["aria-label"] = text("chat.conversations")
            with box(classes="heads"):
                ui.button(text("chat.new"), icon="add", on_click=new).props("outline no-caps").classes("wide")
                icon_button("list", text("chat.conversations"), self._toggle).classes("toggle")
            self._list = box("ul")

    def _toggle(self) -> None:
        self._root.classes(toggle="open-list")

    def draw(self, headings: Sequence[Heading], current: str) -> None:
        self._list.clear()
        with self._list:
            for heading in headings:
                self._row(heading, current=heading.id == current)

    def _row(self, heading: Heading, *, current: bool) -> None:
        title = heading.title or self._text("chat.untitled")
        with box("li") as row:
            if current:
                row.props["aria-current"] = "true"
            opening = words("button", title, "open").props('type="button"')
            opening.props["title"] = title

            async def show() -> None:
                self._root.classes(remove="open-list")
                await self._show(heading.id)

            opening.on("click", show)
            icon_button("edit", self._text("chat.rename", title=title), lambda: self._ask_title(heading))
            icon_button("delete_outline", self._text("chat.remove", title=title), lambda: self._ask_removal(heading))

    def _ask_title(self, heading: Heading) -> None:
        with ui.dialog() as dialog, ui.card():
            words("h2", self._text("chat.rename_title"))
            named = (
                ui.input(self._text("chat.title"), value=heading.title).props("autofocus maxlength=200").classes("wide")
            )

            async def done() -> None:
                dialog.close()
                await self._rename(heading.id, str(named.value))

            named.on("keydown.enter", done)
            with ui.row():
                ui.button(self._text("chat.keep"), on_click=done).props("outline no-caps")
                ui.button(self._text("chat.cancel"), on_click=dialog.close).props("flat no-caps")
        dialog.open()

    def _ask_removal(self, heading: Heading) -> None:
        with ui.dialog() as dialog, ui.card():
            words("h2", self._text("chat.remove_title"))
            ui.label(heading.title or self._text("chat.untitled"))

            async def done() -> None:
                dialog.close()
                await self._remove(heading.id)

            with ui.row():
                ui.button(self._text("chat.remove_do"), on_click=done, color="negative").props("no-caps")
                ui.button(self._text("chat.cancel"), on_click=dialog.close).props("flat no-caps")
        dialog.open()

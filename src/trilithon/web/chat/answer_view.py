"""One message on the page: its words as they come, and what can be done with it once they are there."""

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from trilithon.web.chat.blocks import Blocks
from trilithon.web.chat.tree import Message
from trilithon.web.safe import safe_markdown
from trilithon.web.texts import Texts

__all__ = ["MessageView", "figures_words", "icon_button"]


class MessageView:
    """`root` is the message's place. Finished blocks are drawn once; only the last one is drawn again."""

    def __init__(self, message: Message, text: Texts):
        self.message, self._text = message, text
        self._blocks = Blocks()
        self._thinking: ui.label | None = None
        with ui.element("article").classes(f"message {message.role}") as self.root:
            self.root.props["aria-label"] = text(f"chat.{message.role}")
            if message.placement:
                TextElement(tag="h3", text=message.placement).classes("placement")
            for url in message.images:
                picture = ui.element("img").classes("picture")
                picture.props["src"], picture.props["alt"] = url, text("chat.picture")
            if message.thinking:
                self.think(message.thinking)
            self._body = ui.element("div").classes("words")
            self._error = TextElement(tag="p", text="").classes("bad").props('role="alert"')
            self._figures = TextElement(tag="p", text="").classes("figures muted")
            self.acts = ui.element("div").classes("acts")
        with self._body:
            self._whole = ui.html(self._html(message), sanitize=False)
            self._rest = ui.html("", sanitize=False)
        self.show_end()

    def _html(self, message: Message) -> str:
        if message.role == "assistant":
            return safe_markdown(message.text) if message.text else ""
        return ""

    def think(self, text: str) -> None:
        if self._thinking is None:
            with self.root, ui.element("details").classes("thinking") as details:
                with ui.element("summary"):
                    ui.label(self._text("chat.thinking"))
                self._thinking = ui.label()
            if hasattr(self, "_body"):
                details.move(self.root, target_index=self._body.parent_slot.children.index(self._body))  # type: ignore[union-attr]
        self._thinking.set_text(self._thinking.text + text)

    def write(self, text: str) -> None:
        """More of an answer."""
        finished = self._blocks.feed(text)
        if finished:
            with self._body:
                drawn = ui.html("".join(map(safe_markdown, finished)), sanitize=False)
            self._rest.move(self._body)
            drawn.classes("block")
        self._rest.content = safe_markdown(self._blocks.rest)

    def show_end(self) -> None:
        """What is known once it is over."""
        message = self.message
        if message.role == "user":
            self._body.clear()
            with self._body:
                TextElement(tag="p", text=message.text).classes("asked")
        self._error.set_text(message.error)
        self._error.set_visibility(bool(message.error))
        self._figures.set_text(figures_words(message.figures, self._text))
        self._figures.set_visibility(bool(message.figures))


def figures_words(figures: dict[str, Any], text: Texts) -> str:
    """One line: time to first token, rates, and which unit did what."""
    said = []
    if "first_seconds" in figures:
        said.append(text("chat.first", seconds=f"{figures['first_seconds']:.2f}"))
    if "decode_rate" in figures:
        said.append(text("chat.decode", rate=f"{figures['decode_rate']:.1f}", tokens=figures["answer_tokens"]))
    if "prefill_rate" in figures:
        said.append(text("chat.prefill", rate=f"{figures['prefill_rate']:.0f}", tokens=figures["prompt_tokens"]))
    if figures.get("cached_tokens"):
        said.append(text("chat.cached", tokens=figures["cached_tokens"]))
    if "decode_unit" in figures:
        units = {name: figures[name].upper() for name in ("prefill_unit", "decode_unit")}
        same = units["prefill_unit"] == units["decode_unit"]
        said.append(text("chat.unit" if same else "chat.units", engine=figures["engine"], **units))
    return " · ".join(said)


def icon_button(icon: str, title: str, act: Callable[[], Any]) -> ui.button:
    button = ui.button(icon=icon, on_click=act).props("flat round dense size=sm")
    button.props["aria-label"] = button.props["title"] = title
    return button

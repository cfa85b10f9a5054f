"""One message on the page: its words as they come, and what can be done with it once they are there."""

from collections.abc import Iterator, Sequence
from typing import Any

from nicegui import ui

from trilithon.web.chat.blocks import Blocks
from trilithon.web.chat.tree import ChatMessage
from trilithon.web.elements import Words, box, words
from trilithon.web.quantities import number
from trilithon.web.safe import safe_markdown
from trilithon.web.texts import Texts

__all__ = ["MessageView", "figures_words"]

# A long thought is many elements, so that a word more does not send all of it again.
_LONGEST_THOUGHT = 1000
_LONGEST_GROUP = 4000
_MOST_RECENT = 16
_LEAST_LOAD_SECONDS = 0.1


class MessageView:
    """`root` is the message's place. Finished blocks are drawn once; only the last one is drawn again."""

    def __init__(self, message: ChatMessage, text: Texts):
        self.message, self._text = message, text
        self._blocks = Blocks()
        self._recent: list[ui.html] = []
        self._thought: Words | None = None
        with box("article", f"message {message.role}") as self.root:
            self.root.props["aria-label"] = text(f"chat.{message.role}")
            if message.placement:
                words("h3", message.placement, "placement")
            for url in message.images:
                picture = box("img", "picture")
                picture.props["src"], picture.props["alt"] = url, text("chat.picture")
            with box("details", "thinking") as self._thinking:
                words("summary", text("chat.thinking"))
                self._thoughts = box()
            self._body = box(classes="words")
            self._error = words("p", classes="bad").props('role="alert"')
            self._figures = words("p", classes="figures muted")
            self.acts = box(classes="acts")
        with self._body:
            self._finished = box()
            self._rest = ui.html("", sanitize=False)
        self._thinking.set_visibility(False)
        self.think(message.thinking)
        if message.role == "assistant":
            self.write(message.text)
        self.show_end()

    @property
    def is_gone(self) -> bool:
        """Another branch or another conversation is shown now, or the page is closed."""
        return self.root.is_deleted or self.root.client.is_deleted

    def think(self, text: str) -> None:
        """More of what it thinks."""
        if not text:
            return
        self._thinking.set_visibility(True)
        if self._thought is None or len(self._thought.text) + len(text) > _LONGEST_THOUGHT:
            with self._thoughts:
                self._thought = words("span")
        self._thought.set_text(self._thought.text + text)

    def write(self, text: str) -> None:
        """More of an answer."""
        for blocks in _grouped(self._blocks.feed(text)):
            self._recent.append(self._drawn("".join(map(safe_markdown, blocks))))
            if len(self._recent) == _MOST_RECENT:
                self._merge_recent()
        self._rest.content = safe_markdown(self._blocks.rest)

    def _merge_recent(self) -> None:
        """Into one element: with each step the browser goes through all elements that there are."""
        whole = "".join(element.content for element in self._recent)
        for element in self._recent:
            element.delete()
        self._recent.clear()
        self._drawn(whole)

    def _drawn(self, html: str) -> ui.html:
        with self._finished:
            return ui.html(html, sanitize=False).classes("block")

    def show_end(self) -> None:
        """What is known once it is over."""
        if self.is_gone:
            return
        message = self.message
        if message.role == "user":
            self._body.clear()
            with self._body:
                words("p", message.text, "asked")
        self._error.set_text(message.error)
        self._error.set_visibility(bool(message.error))
        self._figures.set_text(figures_words(message.figures, self._text))
        self._figures.set_visibility(bool(message.figures))


def _grouped(blocks: Sequence[str]) -> Iterator[list[str]]:
    """What is drawn as one: a whole answer as some, of which the browser lays out those that are seen."""
    group: list[str] = []
    for block in blocks:
        group.append(block)
        if sum(map(len, group)) > _LONGEST_GROUP:
            yield group
            group = []
    if group:
        yield group


def figures_words(figures: dict[str, Any], text: Texts) -> str:
    """One line: time to first token, rates, which unit did what, and energy where there is a meter."""
    said = [*_speed_words(figures, text), *_place_words(figures, text)]
    if "joules_per_token" in figures:
        said.append(text("chat.energy", joules=number(f"{figures['joules_per_token']:.2g}", text)))
    if figures.get("cut"):
        said.append(text("chat.cut"))
    return " · ".join(said)


def _speed_words(figures: dict[str, Any], text: Texts) -> Iterator[str]:
    if "first_seconds" in figures:
        loading = figures.get("load_seconds", 0.0)
        key = "chat.first_loading" if loading > _LEAST_LOAD_SECONDS else "chat.first"
        first, loaded = (number(f"{value:.2f}", text) for value in (figures["first_seconds"], loading))
        yield text(key, seconds=first, loading=loaded)
    if "decode_rate" in figures:
        yield text("chat.decode", rate=number(f"{figures['decode_rate']:.1f}", text), tokens=figures["answer_tokens"])
    if "prefill_rate" in figures:
        yield text("chat.prefill", rate=f"{figures['prefill_rate']:.0f}", tokens=figures["prompt_tokens"])
    if figures.get("cached_tokens"):
        yield text("chat.cached", tokens=figures["cached_tokens"])


def _place_words(figures: dict[str, Any], text: Texts) -> Iterator[str]:
    if "decode_unit" in figures:
        units = {name: figures[name].upper() for name in ("prefill_unit", "decode_unit")}
        same = units["prefill_unit"] == units["decode_unit"]
        yield text("chat.unit" if same else "chat.units", engine=figures["engine"], **units)

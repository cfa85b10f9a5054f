"""The small pieces that pages are put together from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

__all__ = ["Words", "at", "box", "folded", "icon_button", "words"]

Words = TextElement


def at(path: str) -> str:
    """A path of this server as the browser asks for it, for what NiceGUI does not put its prefix in front of."""
    try:
        prefix = ui.context.client.request.scope.get("root_path", "")
    except RuntimeError:  # outside of a request there is no browser
        prefix = ""
    return f"{prefix}{path}"


def words(tag: str, text: str = "", classes: str = "") -> Words:
    """Text is shown as it is, whatever it holds."""
    return Words(tag=tag, text=text).classes(classes)


def box(tag: str = "div", classes: str = "") -> ui.element:
    return ui.element(tag).classes(classes)


@contextmanager
def folded(title: str, classes: str = "folded") -> Iterator[ui.element]:
    """Shut until somebody opens it, by the browser's own means."""
    with box("details", classes) as made:
        words("summary", title)
        yield made


def icon_button(icon: str, label: str, act: Callable[[], Any]) -> ui.button:
    """`label` is what is heard, and what is seen when the pointer rests on it."""
    made = ui.button(on_click=act, icon=icon, color=None).props("flat round dense").classes("act")
    made.props["aria-label"] = made.props["title"] = label
    return made

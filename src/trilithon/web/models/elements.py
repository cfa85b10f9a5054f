"""The small pieces that the views of this page are put together from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

__all__ = ["Words", "box", "button", "folded", "icon_button", "words"]

Words = TextElement


def words(tag: str, text: str = "", classes: str = "") -> Words:
    """Text is shown as it is, whatever it holds."""
    return Words(tag=tag, text=text).classes(classes)


def box(tag: str = "div", classes: str = "") -> ui.element:
    return ui.element(tag).classes(classes)


def button(text: str, label: str, act: Callable[[], Any], *, icon: str | None = None, classes: str = "") -> ui.button:
    """`label` says it in full, for those who hear it without what stands around."""
    made = ui.button(text, on_click=act, icon=icon, color=None).props("flat no-caps dense").classes(f"act {classes}")
    made.props["aria-label"] = label
    return made


def icon_button(icon: str, label: str, act: Callable[[], Any]) -> ui.button:
    made = ui.button(on_click=act, icon=icon, color=None).props("flat round dense").classes("act")
    made.props["aria-label"] = label
    made.props["title"] = label
    return made


@contextmanager
def folded(title: str) -> Iterator[None]:
    """Shut until somebody opens it, by the browser's own means."""
    with ui.element("details").classes("folded"):
        words("summary", title)
        yield

"""The small pieces that only the views of this page are put together from."""

from collections.abc import Callable, Iterable
from typing import Any

from nicegui import ui

from trilithon.results.report.markup import Html
from trilithon.web.elements import box, folded
from trilithon.web.texts import Texts

__all__ = ["button", "downloads", "markup", "way"]


def markup(content: Html, tag: str = "div", classes: str = "") -> ui.html:
    """HTML that `results.markup` wrote, which is escaped already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def button(said: str, act: Callable[[], Any], *, icon: str | None = None, classes: str = "act") -> ui.button:
    return ui.button(said, on_click=act, icon=icon, color=None).props("unelevated no-caps").classes(classes)


def way(said: str, address: str, *, label: str = "", classes: str = "") -> ui.link:
    """A link with its own address; a download keeps the page."""
    made = ui.link(said, address).classes(classes)
    if label:
        made.props["aria-label"] = label
    return made


def downloads(title: str, paths: Iterable[tuple[str, str]], text: Texts) -> None:
    """`paths` are forms and where each is to be had."""
    with folded(title, "folded downloads"), box("ul", "ways"):
        for form, path in paths:
            with box("li"):
                way(text(f"results.form_{form}"), path).props["download"] = True

"""What stands around every page: the way to the others, light or dark, the language, and one landmark for the content.

Pages are laid out with Quasar's classes and those of static/pages.css; Tailwind is not loaded, since its script looks
through the whole page again with every change, and an answer that streams is many."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Literal

from nicegui import ui

from trilithon.web.elements import at, box
from trilithon.web.texts import LANGUAGES, Texts

__all__ = ["APPEARANCES", "CONTENT", "PATHS", "Appearance", "frame"]

Appearance = Literal["auto", "light", "dark"]
APPEARANCES: tuple[Appearance, ...] = ("auto", "light", "dark")
PATHS = {"chat": "/", "board": "/board", "models": "/models", "results": "/results", "atlas": "/atlas"}
CONTENT = "content"
"""The id of the element that holds a page's content."""

_ICONS = {"chat": "forum", "board": "memory", "models": "inventory_2", "results": "query_stats", "atlas": "public"}
_APPEARANCE_ICONS = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}


@contextlib.contextmanager
def frame(
    text: Texts,
    *,
    active: str,
    appearance: Appearance = "auto",
    leaving: bool = False,
    pages: Collection[str] = PATHS.keys(),
) -> Iterator[None]:
    """What is built inside is the content of the page `active`, one of PATHS. With `leaving` there is a way to log
    out. `pages` are those that the reader may go to."""
    with ui.header().classes("frame"):
        ui.link(text("frame.skip"), f"#{CONTENT}").classes("skip")
        ui.link("Trilithon", "/").classes("brand").props('aria-hidden="true" tabindex="-1"')
        _ways(text, active, pages)
        with box(classes="choices"):
            _appearances(text, appearance)
            _languages(text)
            if leaving:
                _way_out(text)
    with box(classes="page").props(f'id="{CONTENT}" tabindex="-1"'):
        yield


def _ways(text: Texts, active: str, pages: Collection[str]) -> None:
    with box("nav") as ways:
        ways.props["aria-label"] = text("frame.pages")
        for name, path in ((name, path) for name, path in PATHS.items() if name in pages):
            with ui.link(target=path).classes("way") as way:
                ui.icon(_ICONS[name]).props('aria-hidden="true"')
                ui.label(text(f"frame.{name}"))
            if name == active:
                way.props["aria-current"] = "page"


def _appearances(text: Texts, chosen: Appearance) -> None:
    """A cookie keeps the choice, so that a page is dark from its first pixel on."""
    with _menu(text("frame.appearance"), _APPEARANCE_ICONS[chosen]):
        for name in APPEARANCES:
            _choice(text(f"frame.{name}"), "trilithon-appearance", name, chosen=name == chosen)


def _languages(text: Texts) -> None:
    with _menu(text("frame.language"), "translate"):
        for name, title in LANGUAGES.items():
            _choice(title, "trilithon-language", name, chosen=name == text.language)


def _menu(title: str, icon: str) -> ui.menu:
    with ui.button(icon=icon).props("flat round dense") as button:
        button.props["aria-label"] = title
        button.props["title"] = title
        menu = ui.menu()
        menu.props["aria-label"] = title
    return menu


def _choice(title: str, cookie: str, value: str, *, chosen: bool) -> None:
    with ui.menu_item() as item:
        ui.label(title)
        item.props["active"] = chosen
        item.props["role"] = "menuitemradio"
        item.props["aria-checked"] = "true" if chosen else "false"
    keep = f"document.cookie = '{cookie}={value}; path=/; max-age=31536000; SameSite=Strict'; location.reload()"
    item.on("click", js_handler=f"() => {{ {keep} }}")


def _way_out(text: Texts) -> None:
    title = text("frame.leave")
    form = box("form").props(f'method="post" action="{at("/logout")}"')
    with form, box("button").props('type="submit"').classes("leave") as button:
        button.props["aria-label"] = title
        button.props["title"] = title
        ui.icon("logout").props('aria-hidden="true"')

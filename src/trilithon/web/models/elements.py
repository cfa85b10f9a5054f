"""The small pieces that only the views of this page are put together from."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

__all__ = ["button"]


def button(text: str, label: str, act: Callable[[], Any], *, icon: str | None = None, classes: str = "") -> ui.button:
    """`label` says it in full, for those who hear it without what stands around."""
    made = ui.button(text, on_click=act, icon=icon, color=None).props("flat no-caps dense").classes(f"act {classes}")
    made.props["aria-label"] = label
    return made

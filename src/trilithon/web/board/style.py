"""Sizes of the picture and the lines, and their colours in light and in dark: of units as in the charts of results."""

from importlib import resources

__all__ = ["BODY", "INSET", "LINE", "PAGE_STYLE", "SMALL", "STYLE", "TITLE", "standalone"]

# Of letters, between lines, and from a box's edge to what is in it: CSS pixels.
TITLE, BODY, SMALL = 15.0, 13.0, 12.0
LINE, INSET = 18.0, 14.0

# Letters stand on tints of a unit's colour: contrast is that of ink on the ground, whatever the load.
_LIGHT = (
    "--chip-die:#fdfdfb;--chip-surface:#ffffff;--chip-ink:#1b2330;--chip-muted:#525e6e;--chip-line:#c9d0d9;"
    "--chip-hot:#a8201a;--chip-cpu:#0072b2;--chip-gpu:#c77700;--chip-npu:#00805d;--chip-memory:#7a5195;"
    "--chip-tint:7%;--chip-fill:38%"
)
_DARK = (
    "--chip-die:#171d25;--chip-surface:#0f141a;--chip-ink:#e9edf3;--chip-muted:#a9b4c3;--chip-line:#3d4857;"
    "--chip-hot:#ff9b92;--chip-cpu:#4fa8e0;--chip-gpu:#e6a23c;--chip-npu:#2fbf93;--chip-memory:#b48fd0;"
    "--chip-tint:10%;--chip-fill:42%"
)

_PARTS = resources.files(__package__)
_RULES = (_PARTS / "picture.css").read_text(encoding="utf-8")
PAGE_STYLE = (_PARTS / "page.css").read_text(encoding="utf-8")
STYLE = f".chip{{{_LIGHT}}}body.body--dark .chip{{{_DARK}}}{_RULES}"
"""For the page."""


def standalone(svg: str) -> str:
    """The picture as a file of its own, light or dark as its reader's system is."""
    style = f"<style>.chip{{{_LIGHT}}}@media(prefers-color-scheme:dark){{.chip{{{_DARK}}}}}{_RULES}</style>"
    start = svg.index(">") + 1
    return svg[:start] + style + svg[start:]

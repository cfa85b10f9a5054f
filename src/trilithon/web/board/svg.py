"""Scraps of SVG: text that is known to fit, boxes and bars. Nothing here knows what is drawn."""

import unicodedata
from xml.sax.saxutils import escape, quoteattr

__all__ = ["Sheet", "fitted", "text_width"]

# Widths of letters in ems, as broad as system fonts draw them: what is taken to fit does fit.
_DIGIT, _SMALL, _CAPITAL, _THIN, _BROAD, _WIDE = 0.6, 0.6, 0.74, 0.36, 0.95, 1.05
_BOLD = 1.07
_THIN_LETTERS = frozenset(" .,:;'|!il()[]·/-jtfrI")
_BROAD_LETTERS = frozenset("mwMW@%ШЩЖЮшщжюмФфЫы…—№")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """At most so wide, in the unit of `size`."""
    return sum(map(_letter_width, text)) * size * (_BOLD if bold else 1.0)


def _letter_width(letter: str) -> float:
    if letter in _THIN_LETTERS:
        return _THIN
    if letter in _BROAD_LETTERS:
        return _BROAD
    if unicodedata.east_asian_width(letter) in "WF" or ord(letter) > 0x2FFF:
        return _WIDE
    if letter.isdigit():
        return _DIGIT
    return _CAPITAL if letter.isupper() or ord(letter) > 0x52F else _SMALL


def fitted(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """The text, shortened in its middle until it fits: a model's name tells by both of its ends. Empty where not even
    one letter does."""
    text = _clean(text)
    if text_width(text, size, bold=bold) <= width:
        return text
    for kept in range(min(len(text) - 1, 400), 0, -1):
        tail = kept // 2
        short = f"{text[: kept - tail]}…{text[len(text) - tail :]}"
        if text_width(short, size, bold=bold) <= width:
            return short
    return ""


def _clean(text: str) -> str:
    """Without what XML forbids, or what turns the direction of writing."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


class Sheet:
    """Collects what is drawn. Sizes and places are in CSS pixels at the picture's natural width."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def text(
        self,
        words: str,
        x: float,
        y: float,
        *,
        size: float = 13,
        bold: bool = False,
        anchor: str = "start",
        kind: str = "chip-ink",
    ) -> None:
        """`y` is the line that the letters stand on; `kind` the class that colours them."""
        if words:
            weight = ' font-weight="650"' if bold else ""
            where = "" if anchor == "start" else f' text-anchor="{anchor}"'
            self._drawn.append(
                f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" class="{kind}"{weight}{where}>'
                f"{escape(_clean(words))}</text>"
            )

    def box(self, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0) -> None:
        if width > 0 and height > 0:
            round_off = f' rx="{min(radius, width / 2, height / 2):.1f}"' if radius else ""
            self._drawn.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"{round_off}/>'
            )

    def path(self, steps: str, kind: str, **more: str) -> None:
        attributes = "".join(f" {name.replace('_', '-')}={quoteattr(value)}" for name, value in more.items())
        self._drawn.append(f'<path d="{steps}" class="{kind}"{attributes}/>')

    @property
    def markup(self) -> str:
        return "".join(self._drawn)

    def raw(self, markup: str) -> None:
        """Markup of ours, such as <defs>."""
        self._drawn.append(markup)

    def opened(self, name: str, title: str = "") -> None:
        self._drawn.append(f'<g class="{name}">' + (f"<title>{escape(_clean(title))}</title>" if title else ""))

    def closed(self) -> None:
        self._drawn.append("</g>")

    def svg(self, width: float, height: float, *, name: str, kind: str) -> str:
        """`name` is what a screen reader says."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'class="{kind}" aria-label={quoteattr(_clean(name))}>{"".join(self._drawn)}</svg>'
        )

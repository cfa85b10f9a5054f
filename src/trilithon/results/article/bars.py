"""Grouped horizontal bars, drawn to be published: one legend, the number and its ratio beside each bar, the spread of
runs, and below them when, with what and how often it was measured.

All lengths are points of a sheet 640 wide; the file's width in pixels is the resolution's business."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from trilithon.results.report.charts import COLOURS, STYLE, Drawing

__all__ = ["WIDTH", "GroupedBar", "Panel", "Series", "grouped_bars"]

WIDTH = 640.0
_MARGIN, _BAR, _GAP, _GROUP_GAP, _LINE = 20.0, 15.0, 4.0, 13.0, 13.0
_LABELS = 0.34  # of the width, at most
# From the palette of charts.COLOURS, a lighter and a darker one of each: the hue says the unit.
_SHADES = {
    "cpu": ("#0072b2", "#7cc0e8", "#004a75", "#b5dcf2"),
    "gpu": ("#e69f00", "#f5cf80", "#a06f00", "#fae5bd"),
    "npu": ("#009e73", "#7fd3b9", "#00664a", "#bfe9dc"),
    "handover": ("#cc79a7", "#e6bcd3", "#96476f", "#f2dde9"),
    "other": ("#8b939c", "#c5c9ce", "#5c636a", "#e0e3e6"),
}


_widths: dict[tuple[Any, ...], float] = {}


@dataclass(frozen=True, slots=True)
class Series:
    """One legend entry. `simulated`: its bars are hatched."""

    name: str
    unit: str
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedBar:
    """`value` None: `words` say why there is none. `aside` is the ratio; `least` and `most` are the spread."""

    series: str
    value: float | None
    words: str
    aside: str = ""
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups of bars under one heading, which is empty where there is one panel."""

    title: str
    groups: Sequence[tuple[str, Sequence[GroupedBar]]]


class _BarSheet(Drawing):
    """Axes over the whole figure, in points from the upper left corner. Its height is set when all is drawn."""

    def __init__(self, height: float):
        super().__init__(figsize=(WIDTH / 72, height / 72), dpi=144, facecolor=COLOURS["card"])
        FigureCanvasAgg(self)
        self.axes_ = self.add_axes((0, 0, 1, 1))
        self.axes_.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes_.set_axis_off()

    def write(self, words: str, x: float, y: float, **style: Any) -> float:
        """Text whose baseline is at y; gives its width."""
        look: dict[str, Any] = {"fontsize": 9.5, "color": COLOURS["ink"]} | style
        text = self.axes_.text(x, y, words, **look)
        return float(text.get_window_extent().width) / 2

    def width_of(self, words: str, **style: Any) -> float:
        """Measured once: an article asks for the same words again and again."""
        key = (words, *sorted(style.items()))
        if key not in _widths:
            _widths[key] = self._measured(words, style)
        return _widths[key]

    def _measured(self, words: str, style: dict[str, Any]) -> float:
        text = self.axes_.text(0, 0, words, **style)
        width = float(text.get_window_extent().width) / 2
        text.remove()
        return width

    def broken(self, words: str, width: float, **style: Any) -> list[str]:
        """Broken between words."""
        lines, line = [], ""
        for word in words.split():
            longer = f"{line} {word}".lstrip()
            if line and self.width_of(longer, **style) > width:
                lines.append(line)
                longer = word
            line = longer
        return [*lines, line] if line else lines

    def fitted(self, words: str, width: float, **style: Any) -> str:
        """Cut in the middle where it is wider."""
        keep = len(words)
        cut = words
        while keep > 4 and self.width_of(cut, **style) > width:
            keep -= 1
            cut = f"{words[: keep - keep // 2]}…{words[len(words) - keep // 2 :]}"
        return cut

    def box(self, x: float, y: float, width: float, height: float, look: dict[str, Any]) -> None:
        self.axes_.add_patch(Rectangle((x, y), width, height, **look))


def grouped_bars(
    title: str, subtitle: str, panels: Sequence[Panel], legend: Sequence[Series], foot: Sequence[str]
) -> Drawing:
    """Where no panel has several groups, each bar is named at its left, and there is no legend."""
    with matplotlib.rc_context(STYLE):
        sheet = _BarSheet(100)
        height = _draw(sheet, title, subtitle, panels, legend, foot)
        sheet.set_size_inches(WIDTH / 72, height / 72)
        sheet.axes_.set_ylim(height, 0)
    sheet.title = f"{title}: {subtitle}"
    bars = [(panel.title, group, bar) for panel in panels for group, bars in panel.groups for bar in bars]
    sheet.description = "; ".join(
        " · ".join(filter(None, (title, group, bar.series))) + f": {bar.words} {bar.aside}".rstrip()
        for title, group, bar in bars
    )
    return sheet


def _draw(
    sheet: _BarSheet, title: str, subtitle: str, panels: Sequence[Panel], legend: Sequence[Series], foot: Sequence[str]
) -> float:
    """Returns how high all of it is."""
    y = 14.0
    for line in sheet.broken(title, WIDTH - 2 * _MARGIN, fontsize=17, weight="bold"):
        y += 20
        sheet.write(line, _MARGIN, y, fontsize=17, weight="bold")
    y += 17
    sheet.write(subtitle, _MARGIN, y, fontsize=10.5, color=COLOURS["muted"])
    y += 12
    looks = _looks(legend)
    every = [bar for panel in panels for _, bars in panel.groups for bar in bars]
    has_legend = any(len(panel.groups) > 1 for panel in panels)
    if has_legend:
        y = _draw_legend(sheet, y, legend, looks)
    labels = [group for panel in panels for group, _ in panel.groups] if has_legend else [bar.series for bar in every]
    left = min(max((sheet.width_of(label, fontsize=10) for label in labels), default=0), WIDTH * _LABELS) + _MARGIN + 9
    scale = _scale(sheet, every, WIDTH - _MARGIN - left)
    for panel in panels:
        y = _draw_panel(sheet, left, y, panel, looks, scale, named=not has_legend)
    y += 8
    for sentence in foot:
        for line in sheet.broken(sentence, WIDTH - 2 * _MARGIN, fontsize=8.5):
            y += _LINE
            sheet.write(line, _MARGIN, y, fontsize=8.5, color=COLOURS["muted"])
    return y + 14


def _draw_panel(
    sheet: _BarSheet,
    left: float,
    y: float,
    panel: Panel,
    looks: dict[str, dict[str, Any]],
    scale: float,
    *,
    named: bool,
) -> float:
    """`named`: each bar has its name beside it, and groups have none. Returns where the next panel begins."""
    if panel.title:
        sheet.write(panel.title, _MARGIN, y + 20, fontsize=11.5, weight="bold")
        y += 26
    for group, bars in panel.groups:
        y += 4 if named else _GROUP_GAP
        start = y
        for bar in bars:
            if named:
                _draw_label(sheet, bar.series, left, y + _BAR / 2)
            _draw_bar(sheet, left, y, bar, looks[bar.series], scale)
            y += _BAR + (8 if named else _GAP)
        if not named:
            _draw_label(sheet, group, left, (start + y - _GAP) / 2)
        sheet.axes_.plot((left, left), (start - 2, y - 2), color=COLOURS["muted"], linewidth=0.8)
    return y


def _draw_label(sheet: _BarSheet, words: str, left: float, middle: float) -> None:
    name = sheet.fitted(words, left - _MARGIN - 9, fontsize=10)
    sheet.write(name, left - 9, middle, ha="right", va="center", fontsize=10)


def _looks(legend: Sequence[Series]) -> dict[str, dict[str, Any]]:
    looks: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for series in legend:
        unit = series.unit if series.unit in _SHADES else "other"
        shades = _SHADES[unit]
        colour = shades[counts.get(unit, 0) % len(shades)]
        counts[unit] = counts.get(unit, 0) + 1
        looks[series.name] = {"facecolor": colour, "linewidth": 0}
        if series.simulated:
            looks[series.name] = {"facecolor": COLOURS["card"], "edgecolor": colour, "hatch": "////", "linewidth": 0.8}
    return looks


def _draw_legend(sheet: _BarSheet, y: float, legend: Sequence[Series], looks: dict[str, dict[str, Any]]) -> float:
    x, y = _MARGIN, y + 6
    for series in legend:
        width = 16 + sheet.width_of(series.name, fontsize=9.5) + 16
        if x > _MARGIN and x + width > WIDTH - _MARGIN:
            x, y = _MARGIN, y + 16
        sheet.box(x, y, 10, 10, looks[series.name])
        sheet.write(sheet.fitted(series.name, WIDTH - 2 * _MARGIN - 16, fontsize=9.5), x + 15, y + 9)
        x += width
    return y + 14


def _scale(sheet: _BarSheet, bars: Sequence[GroupedBar], room: float) -> float:
    """Points per unit at which the words behind every bar still fit."""
    scale = float("inf")
    for bar in bars:
        end = max(bar.value or 0.0, bar.most)
        if end > 0:
            scale = min(scale, max(room - _words_width(sheet, bar), room * 0.2) / end)
    return scale if scale < float("inf") else 1.0


def _words_width(sheet: _BarSheet, bar: GroupedBar) -> float:
    width = 8 + sheet.width_of(bar.words, fontsize=10, weight="bold")
    return width + (8 + sheet.width_of(bar.aside, fontsize=9.5) if bar.aside else 0.0)


def _draw_bar(sheet: _BarSheet, left: float, y: float, bar: GroupedBar, look: dict[str, Any], scale: float) -> None:
    base = y + _BAR - 3.6
    if bar.value is None:
        words = sheet.fitted(bar.words, WIDTH - _MARGIN - left - 8, fontsize=9)
        sheet.write(words, left + 7, base, fontsize=9, color=COLOURS["alarm"])
        return
    sheet.box(left, y, bar.value * scale, _BAR, look)
    if bar.most > bar.least:
        ends = (left + bar.least * scale, left + bar.most * scale)
        middle = y + _BAR / 2
        line: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 1.0}
        sheet.axes_.plot(ends, (middle, middle), solid_capstyle="butt", **line)
        for end in ends:
            sheet.axes_.plot((end, end), (middle - 3, middle + 3), **line)
    x = left + max(bar.value, bar.most) * scale + 7
    width = sheet.write(bar.words, x, base, fontsize=10, weight="bold")
    if bar.aside:
        sheet.write(bar.aside, x + width + 7, base, color=COLOURS["muted"])

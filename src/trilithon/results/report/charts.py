"""Two kinds of chart, drawn as a good printed magazine would: bars with their numbers, lines with their names.

Nothing here knows what was measured. A name stands above its bar, so that long ones never collide; every number
is written where it is drawn; colour says the unit and nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

__all__ = ["COLOURS", "STYLE", "Bar", "Chart", "Drawing", "Line", "bar_chart", "line_chart", "spread"]

# cpu, gpu, npu and handover: the palette of Okabe and Ito (2008), told apart with any kind of colour vision.
COLOURS = {
    "cpu": "#0072b2",
    "gpu": "#e69f00",
    "npu": "#009e73",
    "handover": "#cc79a7",
    "other": "#8b939c",
    "ink": "#1c2024",
    "muted": "#60666e",
    "faint": "#e6e8eb",
    "alarm": "#b3261e",
    "card": "#ffffff",
}

# Ids and sizes must be the same each time, and a $ in a name is a $.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "hatch.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "trilithon",
    "text.parse_math": False,
}

_DOTS = 144  # per inch, while laying out: at fewer, hinting makes the words narrower than they come out
_WIDTH, _MARGIN = 320.0, 10.0  # points; a phone is 360 CSS pixels wide, and two stand abreast on a screen
_HEAD, _ROW, _LINE = 54.0, 38.0, 12.0
_FOOT_SIZE = 7.5
_BAR = 0.40  # of a row
_LINES_HEIGHT, _NAMES = 230.0, 0.40  # the names beside the lines take so much of the width at the most
_MARKERS = "osD^vPX"


class Drawing(Figure):
    """A figure that knows its name and says in words all that it shows."""

    name = ""
    title: str
    description: str


class Chart(Drawing):
    """One of a fixed width, with its title above."""

    def __init__(self, height: float, *, title: str, subtitle: str, description: str):
        super().__init__(figsize=(_WIDTH / 72, height / 72), dpi=_DOTS, facecolor=COLOURS["card"])
        FigureCanvasAgg(self)
        self.title = f"{title}: {subtitle}"
        self.description = description
        self.height = height
        self.write(title, _MARGIN, height - 23, size=13, weight="bold")
        self.write(subtitle, _MARGIN, height - 38, size=9, color=COLOURS["muted"])

    def write(self, words: str, x: float, y: float, **style: Any) -> Text:
        """Text in points from the lower left corner."""
        text = self.text(x / _WIDTH, y / self.height, words, **({"color": COLOURS["ink"]} | style))
        _fit(text, _WIDTH - _MARGIN - x)
        return text

    def area(self, left: float, bottom: float, right: float, top: float) -> Axes:
        """Empty axes; the four edges in points from the lower left corner."""
        axes = self.add_axes(
            (left / _WIDTH, bottom / self.height, (right - left) / _WIDTH, (top - bottom) / self.height)
        )
        axes.set_facecolor("none")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=8.5, labelcolor=COLOURS["muted"])
        return axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`parts` are stacked from zero, the last in full colour. Empty `parts`: no result, and `note` says why.

    `number` and `aside` are written at the end of the bar; `tag` stands beside the name ("broken", "degraded");
    `broken` hatches the bar; `lacking` is what stands in the place of an empty one."""

    label: str
    unit: str
    parts: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] = ()
    number: str = ""
    aside: str = ""
    tag: str = ""
    note: str = ""
    broken: bool = False
    lacking: str = "no result"

    @property
    def words(self) -> str:
        said = f"{self.number} {self.aside}".strip() if self.parts else f"{self.lacking}, {self.note}"
        return f"{self.label}: {said}" + (f", {self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points are (x, value, low, high), by x."""

    label: str
    unit: str
    points: tuple[tuple[float, float, float, float], ...]
    tag: str = ""
    broken: bool = False


def bar_chart(title: str, subtitle: str, bars: Sequence[Bar], foot: Sequence[str], *, ceiling: float = 0.0) -> Chart:
    """Horizontal bars from the top in the order given; `ceiling` draws the length that none can pass."""
    foot = _in_lines(foot)
    base = _MARGIN + _LINE * len(foot)
    height = base + _ROW * len(bars) + _HEAD
    with matplotlib.rc_context(STYLE):
        chart = Chart(height, title=title, subtitle=subtitle, description="; ".join(bar.words for bar in bars))
        axes = chart.area(_MARGIN, base, _WIDTH - _MARGIN, height - _HEAD + 6)
        axes.set(ylim=(len(bars) - 0.42, -0.58), xticks=[], yticks=[])
        ends = [_draw_bar(axes, row, bar, ceiling) for row, bar in enumerate(bars)]
        axes.set_xlim(0, _room(axes, ends, ceiling))
        _draw_foot(chart, foot)
    return chart


def _draw_bar(axes: Axes, row: int, bar: Bar, ceiling: float) -> tuple[float, list[Text]]:
    """Returns where the bar ends, in data, and the words that follow it."""
    middle = row + 0.14
    label = axes.annotate(
        bar.label, (0, row - 0.16), xytext=(0, 0), textcoords="offset points", fontsize=9.5, color=COLOURS["ink"]
    )
    tag = _after(axes, label, bar.tag, fontsize=8.5, weight="bold", color=COLOURS["alarm" if bar.broken else "muted"])
    taken = _at_right(axes, row - 0.16, bar) if ceiling and bar.parts else 0.0
    _fit(label, _WIDTH - 2 * _MARGIN - taken - sum(_width(text) + 6 for text in tag))
    if ceiling and bar.parts:
        axes.barh(middle, ceiling, _BAR, color=COLOURS["faint"])
    if not bar.parts:
        axes.plot((0, 0), (middle - _BAR / 2, middle + _BAR / 2), color=COLOURS["alarm"], linewidth=1.5)
        why = f"{bar.lacking} · {bar.note}" if bar.note else bar.lacking
        note = _beside(axes, 0, middle, why, COLOURS["alarm"], False)
        _fit(note, _WIDTH - 2 * _MARGIN - 8)
        return 0.0, []
    _draw_parts(axes, middle, bar)
    end = max(sum(bar.parts), *(bar.interval or (0.0,)), *bar.values, 0.0)
    if ceiling:
        return end, []
    number = _beside(axes, end, middle, bar.number, COLOURS["ink"], True)
    return end, [number, *_after(axes, number, bar.aside, fontsize=8.5, color=COLOURS["muted"])]


def _draw_parts(axes: Axes, middle: float, bar: Bar) -> None:
    colour, left = COLOURS[bar.unit], 0.0
    for part, length in enumerate(bar.parts):
        last = part == len(bar.parts) - 1
        look: dict[str, Any] = {"color": colour, "alpha": 1.0 if last else 0.38}
        if bar.broken:
            look = {"facecolor": COLOURS["card"], "edgecolor": colour, "hatch": "////", "linewidth": 0.8}
        axes.barh(middle, length, _BAR, left=left, **look)
        left += length
    dots: dict[str, Any] = {
        "color": COLOURS["ink"],
        "ms": 3.4,
        "mec": COLOURS["card"],
        "mew": 0.5,
        "alpha": 0.75,
        "clip_on": False,
    }
    axes.plot(bar.values, [middle + _BAR * 0.24] * len(bar.values), "o", **dots)
    if bar.interval:
        above = middle - _BAR * 0.2
        axes.plot(bar.interval, (above, above), color=COLOURS["ink"], linewidth=1.1, solid_capstyle="butt")
        axes.vlines(bar.interval, above - 0.07, above + 0.07, color=COLOURS["ink"], linewidth=1.1)


def _beside(axes: Axes, x: float, y: float, words: str, colour: str, bold: bool) -> Text:
    style: dict[str, Any] = {
        "fontsize": 9.5 if bold else 9,
        "weight": "bold" if bold else "normal",
        "va": "center",
        "color": colour,
    }
    # Outside the axes' limits as they are before `_room` sets them, words would be dropped and measured as nothing.
    return axes.annotate(words, (x, y), xytext=(7, 0), textcoords="offset points", annotation_clip=False, **style)


def _at_right(axes: Axes, y: float, bar: Bar) -> float:
    """The numbers at the right end of the name's line: over the ceiling's grey they could not be read.

    Returns the width they take, in points."""
    place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    aside = axes.annotate(bar.aside, (1, y), xytext=(0, 0), fontsize=8.5, color=COLOURS["muted"], **place)
    shift = _width(aside) + 6
    look: dict[str, Any] = {"fontsize": 9.5, "weight": "bold", "color": COLOURS["ink"]}
    number = axes.annotate(bar.number, (1, y), xytext=(-shift, 0), **look, **place)
    return shift + _width(number) + 10


def _after(axes: Axes, before: Text, words: str, **style: Any) -> list[Text]:
    """The words on the same baseline: DejaVu Sans reaches 0.236 of its size below it."""
    if not words:
        return []
    lift = 0.236 * float(before.get_fontsize())
    place: dict[str, Any] = {"xycoords": before, "textcoords": "offset points", "xytext": (6, lift)}
    return [axes.annotate(words, (1, 0), **place, **style)]


def _room(axes: Axes, ends: Sequence[tuple[float, list[Text]]], ceiling: float) -> float:
    """The smallest upper limit at which every bar's words still fit behind its end."""
    width, limit = _WIDTH - 2 * _MARGIN, max([ceiling, *(end for end, _ in ends)])
    for end, texts in ends:
        words = sum(_width(text) + 7 for text in texts)
        limit = max(limit, end / (1 - min(words / width, 0.9)))
    return limit or 1.0


def _width(text: Text) -> float:
    """In points."""
    return float(text.get_window_extent().width) * 72 / _DOTS


def _fit(text: Text, width: float) -> None:
    """Make the words fit: a smaller size first, then a cut in the middle."""
    needed = _width(text)
    if needed > width:
        text.set_fontsize(max(6.5, float(text.get_fontsize()) * width / needed))
    words, needed = text.get_text(), _width(text)
    keep = int(len(words) * width / needed) if needed > width else len(words)
    while _width(text) > width and keep > 4:
        keep -= 2
        text.set_text(f"{words[: keep // 2]}…{words[-(keep // 2) :]}")


def _in_lines(sentences: Sequence[str]) -> list[str]:
    """The foot's sentences, broken between words where one is wider than the chart."""
    scratch = Figure(dpi=_DOTS)
    FigureCanvasAgg(scratch)
    text = scratch.text(0, 0, "", size=_FOOT_SIZE, family=STYLE["font.family"])
    lines: list[str] = []
    for sentence in sentences:
        line = ""
        for word in sentence.split():
            longer = f"{line} {word}".lstrip()
            text.set_text(longer)
            if line and _width(text) > _WIDTH - 2 * _MARGIN:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _draw_foot(chart: Chart, foot: Sequence[str]) -> None:
    for row, words in enumerate(foot, start=1):
        chart.write(words, _MARGIN, 9 + _LINE * (len(foot) - row), size=_FOOT_SIZE, color=COLOURS["muted"])


def line_chart(
    title: str,
    subtitle: str,
    lines: Sequence[Line],
    foot: Sequence[str],
    *,
    x_title: str,
    rings: Sequence[tuple[float, float]] = (),
) -> Chart:
    """Lines from zero up with their intervals; each is named at its end, in its colour. `rings` mark points."""
    foot = _in_lines(foot)
    base = 2 * _MARGIN + 22 + _LINE * len(foot)
    height = base + _LINES_HEIGHT + _HEAD
    said = "; ".join(f"{line.label}: " + ", ".join(f"{x:g} {y:.4g}" for x, y, *_ in line.points) for line in lines)
    with matplotlib.rc_context(STYLE):
        chart = Chart(height, title=title, subtitle=subtitle, description=said)
        names = [chart.write(_named(line), 0, 0, size=8.5) for line in lines]
        for name in names:
            if _width(name) > _WIDTH * _NAMES:
                name.set_text(name.get_text().replace("+", "+\n").replace(" · ", "\n· "))
            _fit(name, _WIDTH * _NAMES)
        right = _WIDTH - _MARGIN - 16 - max((_width(name) for name in names), default=0.0)
        axes = chart.area(_MARGIN + 30, base, right, height - _HEAD)
        for index, line in enumerate(lines):
            _draw_line(axes, line, _look(lines, index))
        for place in rings:
            axes.plot(*place, "o", ms=12, mfc="none", mec=COLOURS["ink"], mew=1.1)
        _scale(axes, lines)
        axes.set_xlabel(x_title, fontsize=8.5, color=COLOURS["muted"])
        _name_lines(chart, axes, lines, names, right)
        _draw_foot(chart, foot)
    return chart


def _named(line: Line) -> str:
    return line.label + (f" · {line.tag}" if line.tag else "")


def _look(lines: Sequence[Line], index: int) -> dict[str, Any]:
    """Lines of one unit share a colour; their markers tell them apart."""
    earlier = sum(line.unit == lines[index].unit for line in lines[:index])
    colour, marker = COLOURS[lines[index].unit], _MARKERS[earlier % len(_MARKERS)]
    return {"color": colour, "marker": marker, "ms": 5, "mec": COLOURS["card"], "mew": 0.7, "linewidth": 1.6}


def _draw_line(axes: Axes, line: Line, look: dict[str, Any]) -> None:
    colour, xs = COLOURS[line.unit], [point[0] for point in line.points]
    axes.vlines(
        xs,
        [low for *_, low, _ in line.points],
        [high for *_, high in line.points],
        color=colour,
        linewidth=3.5,
        alpha=0.35,
    )
    axes.plot(xs, [y for _, y, *_ in line.points], linestyle="--" if line.broken else "-", **look)


def _scale(axes: Axes, lines: Sequence[Line]) -> None:
    xs = sorted({x for line in lines for x, *_ in line.points})
    if len(xs) > 1 and xs[0] > 0 and xs[-1] / xs[0] >= 4:
        axes.set_xscale("log", base=2)
    width = axes.get_position().width * _WIDTH
    axes.set_xticks(_apart(xs, width, axes.get_xscale() == "log"), minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xticklabels([f"{int(x)}" for x in axes.get_xticks()])
    axes.set_ylim(0, 1.06 * max((high for line in lines for *_, high in line.points), default=1.0))
    axes.locator_params(axis="y", nbins=5)
    axes.grid(axis="y", color=COLOURS["faint"], linewidth=0.8)
    axes.set_axisbelow(True)


def _apart(xs: Sequence[float], width: float, logarithmic: bool) -> list[float]:
    """Of the measured x those whose numbers do not touch on axes `width` points wide, from the last."""
    if not xs:
        return []
    first, last = (xs[0], xs[-1])
    kept: list[float] = []
    for x in reversed(xs):
        place = _share(x, first, last, logarithmic)
        if not kept or (_share(kept[-1], first, last, logarithmic) - place) * width >= _ticks_apart(x, kept[-1]):
            kept.append(x)
    return kept[::-1]


def _ticks_apart(x: float, other: float) -> float:
    """Points between the middles of two numbers: a digit of DejaVu Sans is 0.64 of its size wide."""
    return 0.64 * 8.5 * (len(f"{int(x)}") + len(f"{int(other)}")) / 2 + 6


def _share(x: float, first: float, last: float, logarithmic: bool) -> float:
    if first == last:
        return 0.0
    if logarithmic:
        return math.log(x / first) / math.log(last / first)
    return (x - first) / (last - first)


def _name_lines(chart: Chart, axes: Axes, lines: Sequence[Line], names: Sequence[Text], right: float) -> None:
    """Names at the right with their markers, beside the ends of their lines, moved apart where they would touch."""
    order = sorted(range(len(lines)), key=lambda index: lines[index].points[-1][1])
    ends = [float(axes.transData.transform(lines[index].points[-1][:2])[1]) * 72 / _DOTS for index in order]
    gap = 2.0 + 11.0 * max((name.get_text().count("\n") + 1 for name in names), default=1)
    for index, y in zip(order, spread(ends, gap), strict=True):
        names[index].set(position=((right + 16) / _WIDTH, y / chart.height), va="center", linespacing=1.1)
        key = Line2D([(right + 9) / _WIDTH], [y / chart.height], **_look(lines, index), transform=chart.transFigure)
        chart.add_artist(key)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as may be (least squares), until each is `gap` above the one before.

    Isotonic regression by pooling adjacent violators, of the places less their gaps."""
    blocks: list[list[float]] = []
    for index, place in enumerate(places):
        block = [place - gap * index]
        while blocks and fmean(blocks[-1]) > fmean(block):
            block = blocks.pop() + block
        blocks.append(block)
    level = [fmean(block) for block in blocks for _ in block]
    return [place + gap * index for index, place in enumerate(level)]

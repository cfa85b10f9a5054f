"""A chart of the last minutes as SVG: lines told apart by colour and by dashes, each with its value now. Pure."""

from collections.abc import Sequence

from trilithon.web import quantities
from trilithon.web.board.history import HistoryChart, HistoryLine
from trilithon.web.board.readings import KEPT_SECONDS
from trilithon.web.board.svg import Sheet, fitted, text_width
from trilithon.web.texts import Texts

__all__ = ["draw_chart"]

_HEIGHT, _TOP, _SIDE = 110.0, 20.0, 2.0
_SMALL, _TINY, _ROW = 12.0, 11.0, 20.0
_SAMPLE = 26.0
_GAP_SECONDS = 8.0  # longer without a value: nobody looked, and no line is drawn


def draw_chart(chart: HistoryChart, text: Texts, *, width: float) -> str:
    """An SVG with its own legend, which says what each line is now."""
    sheet = Sheet()
    left, right = _SIDE, width - _SIDE
    for share in (0.0, 0.5, 1.0):
        y = _TOP + _HEIGHT * (1 - share)
        sheet.path(f"M{left:.0f} {y:.1f}H{right:.0f}", "lines-grid")
    sheet.text(quantities.sensor_value(chart.quantity, chart.top, text), left, _TOP - 7, size=_TINY, kind="chip-muted")
    for number, line in enumerate(chart.lines):
        sheet.path(_steps(line, chart.top, left, right), f"lines-{number}")
    y = _TOP + _HEIGHT + 16
    sheet.text(text("board.minutes_ago"), left, y, size=_TINY, kind="chip-muted")
    sheet.text(text("board.now"), right, y, size=_TINY, anchor="end", kind="chip-muted")
    labels = [
        f"{line.name} {quantities.sensor_value(chart.quantity, line.points[-1][1], text)}" for line in chart.lines
    ]
    bottom = _legend(sheet, labels, left, y + 10, right - left)
    title = text(f"board.lines_{chart.key}")
    return sheet.svg(
        width, bottom, name=text("board.lines_name", title=title, values=", ".join(labels)), kind="chip lines"
    )


def _steps(line: HistoryLine, top: float, left: float, right: float) -> str:
    steps, before = [], None
    for ago, value in line.points:
        x = right - (right - left) * min(ago, KEPT_SECONDS) / KEPT_SECONDS
        y = _TOP + _HEIGHT * (1 - min(value / top, 1.0))
        joined = before is not None and before - ago <= _GAP_SECONDS
        steps.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}" + ("" if joined else "h0.1"))
        before = ago
    return "".join(steps)


def _legend(sheet: Sheet, labels: Sequence[str], x: float, y: float, width: float) -> float:
    place, bottom = x, y
    for number, label in enumerate(labels):
        label = fitted(label, width - _SAMPLE - 6, _SMALL)
        entry_width = _SAMPLE + 6 + text_width(label, _SMALL) + 16
        if place > x and place + entry_width > x + width + 16:
            place, bottom = x, bottom + _ROW
        sheet.path(f"M{place:.0f} {bottom + 10:.0f}h{_SAMPLE:.0f}", f"lines-{number}")
        sheet.text(label, place + _SAMPLE + 6, bottom + 14, size=_SMALL)
        place += entry_width
    return bottom + _ROW + 2

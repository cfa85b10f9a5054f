"""The board's page: the picture, the same in words, the last minutes as lines, and the doctor's findings."""

from nicegui import events, ui

from trilithon.language import translated
from trilithon.web.board.chip import ChipView, read_chip
from trilithon.web.board.findings import FindingsList
from trilithon.web.board.history import HistoryChart, charts
from trilithon.web.board.lines import draw_chart
from trilithon.web.board.picture import NARROW, WIDE, draw
from trilithon.web.board.readings import PERIOD_SECONDS, Watch, watch_of
from trilithon.web.board.style import PAGE_STYLE, STYLE
from trilithon.web.board.table import table
from trilithon.web.context import AppContext, PageSession
from trilithon.web.elements import box, folded, words
from trilithon.web.texts import Texts

__all__ = ["build"]

_CHART_WIDTH = 330.0
# Lines move slowly, and a table that is read aloud should stand still for a while.
_LINES_EVERY, _TABLE_EVERY = 3, 5
_TELL_WIDTH = """
const narrow = matchMedia('(max-width: 760px)');
const tell = () => emitEvent('board_narrow', narrow.matches);
narrow.addEventListener('change', tell);
tell();
"""


async def build(context: AppContext, session: PageSession, text: Texts) -> None:
    ui.add_css(STYLE + PAGE_STYLE)
    watch = watch_of(context)
    view = _View(watch, text)
    findings_list = FindingsList(context, watch, text)
    ui.timer(PERIOD_SECONDS, view.refresh, immediate=False)
    ui.timer(0, findings_list.refresh, once=True)
    ui.on("board_narrow", view.narrowed)
    ui.run_javascript(_TELL_WIDTH)


class _View:
    """What moves. One browser's; the watch behind it is everybody's."""

    def __init__(self, watch: Watch, text: Texts):
        self._watch, self._text = watch, text
        self._client = ui.context.client
        self._width: float = WIDE
        self._turn = 0
        self._shown: tuple[str, ...] = ()
        self._drawings: list[ui.html] = []
        words("h1", text("frame.board"))
        ui.label(translated(watch.board.describe(), text.language)).classes("muted")
        ui.label(text("board.lead")).classes("muted")
        self._picture = ui.html("", sanitize=False).classes("board-picture")
        self._remarks = ui.label().classes("muted")
        with folded(text("board.table"), "board-words"):
            self._table = ui.html("", sanitize=False)
        words("h2", text("board.lines"))
        self._wait = ui.label(text("board.lines_wait")).classes("muted")
        self._grid = box(classes="board-lines")
        self.refresh()

    def narrowed(self, event: events.GenericEventArguments) -> None:
        self._width = NARROW if event.args else WIDE
        self._draw(self._chip())

    def refresh(self) -> None:
        """Once a second, as long as there is a browser to show it to."""
        if self._turn and not self._client.has_socket_connection:
            return
        self._watch.ask()
        chip = self._chip()
        self._draw(chip)
        if self._turn % _LINES_EVERY == 0 or not self._shown:
            self._draw_lines()
        if self._turn % _TABLE_EVERY == 0:
            self._table.content = table(chip, self._text)
        self._turn += 1

    def _chip(self) -> ChipView:
        watch = self._watch
        values = watch.latest.values if watch.latest else {}
        return read_chip(watch.board, values, watch.pool.loaded(), watch.pool.waiting)

    def _draw(self, chip: ChipView) -> None:
        self._picture.content = draw(chip, self._text, width=self._width)
        self._remarks.text = " ".join(self._said())

    def _said(self) -> list[str]:
        watch, text = self._watch, self._text
        said = [text("board.closed", files=", ".join(watch.closed))] if watch.closed else []
        said += [text("board.hung", file=watch.hung)] if watch.hung else []
        return said + ([text("board.blind")] if watch.blind else [])

    def _draw_lines(self) -> None:
        history_charts = charts(self._watch.moments, self._text, memory_bytes=self._watch.board.memory_bytes)
        keys = tuple(chart.key for chart in history_charts)
        if keys != self._shown:
            self._lay_out(history_charts)
            self._shown = keys
        for drawing, chart in zip(self._drawings, history_charts, strict=True):
            drawing.content = draw_chart(chart, self._text, width=_CHART_WIDTH)

    def _lay_out(self, history_charts: tuple[HistoryChart, ...]) -> None:
        self._wait.set_visibility(not history_charts)
        self._grid.clear()
        self._drawings = []
        with self._grid:
            for chart in history_charts:
                with box("section", "panel"):
                    words("h3", self._text(f"board.lines_{chart.key}"))
                    self._drawings.append(ui.html("", sanitize=False))

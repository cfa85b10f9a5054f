"""The memory's part of the picture: what holds how much of it, as one bar with its legend. Pure."""

from trilithon.web import quantities
from trilithon.web.board.chip import Memory
from trilithon.web.board.style import BODY, INSET, LINE, SMALL, TITLE
from trilithon.web.board.svg import Sheet, fitted, text_width
from trilithon.web.texts import Texts

__all__ = ["draw_memory"]

_BAR = 26.0


def draw_memory(sheet: Sheet, memory: Memory, text: Texts, x: float, y: float, width: float) -> float:
    """Gives its lower edge."""
    inner, inside = width - 2 * INSET, Sheet()
    left = x + INSET
    title = text("board.memory")
    total = "" if memory.total_bytes is None else quantities.size(memory.total_bytes, text)
    speed = "" if memory.clock_hz is None else quantities.clock(memory.clock_hz, text, memory.top_hz)
    facts = [text("board.memory_clock", clock=speed)] if speed else []
    facts += [] if memory.celsius is None else [quantities.heat(memory.celsius, text)[0]]
    facts += [text("board.swap", size=quantities.size(memory.swap_bytes, text))] if memory.swap_bytes else []
    inside.text(title, left, y + 27, size=TITLE, bold=True, kind="chip-name")
    inside.text(total, left + text_width(title, TITLE, bold=True) + 10, y + 27, size=BODY, kind="chip-ink")
    bottom, right = y + 36, " · ".join(facts)
    if text_width(right, BODY) + text_width(title + total, TITLE, bold=True) + 40 <= inner:
        inside.text(right, left + inner, y + 27, size=BODY, anchor="end", kind="chip-muted")
    else:
        for fact in facts:
            inside.text(fitted(fact, inner, BODY), left, bottom + 10, size=BODY, kind="chip-muted")
            bottom += LINE
    if memory.kinds:
        _kinds(inside, memory, left, bottom, inner)
        bottom = _legend(inside, memory, text, left, bottom + _BAR + 8, inner)
    bottom += INSET - 2
    sheet.opened("chip-unit chip-memory")
    sheet.box(x, y, width, bottom - y, "chip-package", radius=10)
    sheet.raw(inside.markup)
    sheet.closed()
    return bottom


def _kinds(sheet: Sheet, memory: Memory, x: float, y: float, width: float) -> None:
    known = sum(count for _, count in memory.kinds)
    whole = max(known, memory.total_bytes or 0.0)
    sheet.box(x, y, width, _BAR, "chip-cell", radius=5)
    if not whole:
        return
    for place, (kind, count) in enumerate(memory.kinds):
        part = width * count / whole
        if kind != "free":
            sheet.box(x + (1 if place else 0), y, part - (1 if place else 0), _BAR, f"chip-{_plain(kind)}", radius=2)
        x += part


def _legend(sheet: Sheet, memory: Memory, text: Texts, x: float, y: float, width: float) -> float:
    place, bottom = x, y
    for kind, count in memory.kinds:
        words_of = f"{text(f'board.{_plain(kind)}')} {quantities.size(count, text)}"
        entry_width = 20 + text_width(words_of, SMALL) + 14
        if place > x and place + entry_width > x + width + 14:
            place, bottom = x, bottom + LINE + 2
        sheet.box(place, bottom + 2, 12, 12, "chip-cell", radius=3)
        if kind != "free":
            sheet.box(place, bottom + 2, 12, 12, f"chip-{_plain(kind)}", radius=3)
        sheet.text(fitted(words_of, width - 20, SMALL), place + 18, bottom + 12.5, size=SMALL)
        place += entry_width
    return bottom + LINE


def _plain(kind: str) -> str:
    return kind.lower().replace(" ", "_")

"""The chip as a picture: its units on the die, the memory beside it, and in each unit what it does now.

Pure: the same chip gives the same SVG. Colour repeats what position and words say already."""

from collections.abc import Sequence

from trilithon.web import quantities
from trilithon.web.board.chip import Block, ChipView, CoreView, PlacedModel
from trilithon.web.board.memory import draw_memory
from trilithon.web.board.style import BODY, INSET, LINE, SMALL, TITLE
from trilithon.web.board.svg import Sheet, fitted, text_width
from trilithon.web.texts import Texts

__all__ = ["NARROW", "WIDE", "draw"]

WIDE, NARROW = 960, 344
_STACKED_BELOW = 600
_EDGE, _GAP = 14.0, 12.0
_PILL, _PILL_GAP = 28.0, 6.0
# A core with its number and load; with its load alone; as a mark only.
_CELLS = ((24, 58.0, 50.0), (96, 34.0, 46.0), (1 << 16, 14.0, 14.0))
_MOST_CELLS = 1024
_CELL_GAP = 6.0
_MOST_TEMPERATURES, _MOST_METERS = 1, 2  # the rest is in the table
_BUS = 22.0
_STAT_GAP = 26.0


def draw(chip: ChipView, text: Texts, *, width: float = WIDE) -> str:
    """An SVG of that natural width in CSS pixels, coloured by `style.STYLE`."""
    sheet = Sheet()
    inner = width - 2 * _EDGE - 2 * INSET
    left = _EDGE + INSET
    body = Sheet()
    y = _EDGE + INSET + _head(body, chip, text, left, _EDGE + INSET, inner) + _GAP
    y = _units(body, chip, text, left, y, inner) + INSET
    _die(sheet, width, y)
    bottom = y
    sheet.raw(body.markup)
    if chip.memory.kinds or chip.memory.total_bytes:
        _bus(sheet, width, bottom)
        y = draw_memory(sheet, chip.memory, text, _EDGE, bottom + _BUS, width - 2 * _EDGE)
    name = text("board.picture", name=" · ".join(part for part in (chip.model, chip.name) if part))
    return sheet.svg(width, y + _EDGE / 2, name=name, kind="chip")


def _die(sheet: Sheet, width: float, bottom: float) -> None:
    """The body of the chip, with its legs left and right."""
    y = _EDGE + 26
    legs = []
    while y < bottom - 20:
        legs.append(f"M{_EDGE - 8:.0f} {y:.0f}h8M{width - _EDGE:.0f} {y:.0f}h8")
        y += 16
    sheet.path("".join(legs), "chip-leg")
    sheet.box(_EDGE, _EDGE, width - 2 * _EDGE, bottom - _EDGE, "chip-die", radius=14)


def _bus(sheet: Sheet, width: float, y: float) -> None:
    middle, count = width / 2, int(min(width * 0.6, 480) // 12)
    left = middle - (count - 1) * 6
    sheet.path("".join(f"M{left + 12 * number:.0f} {y:.0f}v{_BUS:.0f}" for number in range(count)), "chip-leg")


# -- the head


def _head(sheet: Sheet, chip: ChipView, text: Texts, x: float, y: float, width: float) -> float:
    """Its height. Names at the left; at the right, or below where there is no room, what is of the whole."""
    stats = _stats(chip, text)
    widths = [
        max(text_width(label, SMALL), text_width(value, TITLE + 2, bold=True)) + _STAT_GAP for label, value, _ in stats
    ]
    stacked = width < _STACKED_BELOW
    room = width if stacked else width - min(sum(widths), width * 0.66)
    title, subtitle = (chip.name, chip.model) if chip.name else (chip.model, "")
    sheet.text(fitted(title, room, 22, bold=True), x, y + 20, size=22, bold=True)
    sheet.text(fitted(subtitle, room, BODY), x, y + 40, size=BODY, kind="chip-muted")
    head = 46.0 if subtitle else 28.0
    if not stacked:
        place = x + width
        for (label, value, kind), stat_width in reversed(list(zip(stats, widths, strict=True))):
            if place - stat_width < x + room - 1:
                continue
            _stat(sheet, label, value, kind, place - stat_width + _STAT_GAP, y)
            place -= stat_width
        return max(head, 42.0)
    place, head = x, head + 8
    for (label, value, kind), stat_width in zip(stats, widths, strict=True):
        if place > x and place + stat_width - _STAT_GAP > x + width:
            place, head = x, head + 48
        if stat_width - _STAT_GAP > width:
            continue
        _stat(sheet, label, value, kind, place, y + head)
        place += stat_width
    return head + 42


def _stat(sheet: Sheet, label: str, value: str, kind: str, x: float, y: float) -> None:
    sheet.text(label, x, y + 12, size=SMALL, kind="chip-muted")
    sheet.text(value, x, y + 34, size=TITLE + 2, bold=True, kind=kind)


def _stats(chip: ChipView, text: Texts) -> list[tuple[str, str, str]]:
    """Label, value and the value's colour."""
    temperatures = [
        (fitted(name, 160, SMALL), *quantities.heat(celsius, text))
        for name, celsius in chip.temperatures[:_MOST_TEMPERATURES]
    ]
    for name, watts in chip.watts[:_MOST_METERS]:
        temperatures.append(
            (fitted(text("board.meter", name=name), 180, SMALL), quantities.watts(watts, text), "chip-ink")
        )
    temperatures.append((text("board.running"), str(chip.running), "chip-ink"))
    temperatures.append((text("board.waiting"), str(chip.waiting), "chip-ink"))
    return temperatures


# -- the units


def _units(sheet: Sheet, chip: ChipView, text: Texts, x: float, y: float, width: float) -> float:
    """The lower edge of all of them."""
    clusters = [block for block in chip.blocks if block.unit == "cpu"]
    others = [block for block in chip.blocks if block.unit != "cpu"]
    if clusters:
        y = _unit(sheet, chip, text, clusters, (x, y, width), 0.0) + (_GAP if others else 0)
    if width < _STACKED_BELOW:
        for place, block in enumerate(others):
            y = _unit(sheet, chip, text, [block], (x, y, width), 0.0) + (_GAP if place + 1 < len(others) else 0)
        return y
    if others:
        block_width = (width - _GAP * (len(others) - 1)) / len(others)
        heights = [_unit(Sheet(), chip, text, [block], (x, y, block_width), 0.0) - y for block in others]
        for place, block in enumerate(others):
            _unit(sheet, chip, text, [block], (x + place * (block_width + _GAP), y, block_width), max(heights))
        y += max(heights)
    return y


def _unit(
    sheet: Sheet,
    chip: ChipView,
    text: Texts,
    blocks: Sequence[Block],
    place: tuple[float, float, float],
    least_height: float,
) -> float:
    """A box with the unit's blocks side by side, or one below the other, and the models on it; gives its lower edge."""
    x, y, width = place
    unit, inner = blocks[0].unit, width - 2 * INSET
    inside = Sheet()
    if width < _STACKED_BELOW or len(blocks) == 1:
        bottom = y + INSET
        for number, block in enumerate(blocks):
            bottom = _block(inside, block, text, x + INSET, bottom + (_GAP if number else 0), inner, 0)
    else:
        bottom = _abreast(inside, blocks, text, x + INSET, y + INSET, inner)
    for placed in chip.sitting(unit):
        bottom = _pill(inside, placed, text, x + INSET, bottom + _PILL_GAP + 2, inner)
    bottom = max(bottom + INSET, y + least_height)
    sheet.opened(f"chip-unit chip-{unit}")
    sheet.box(x, y, width, bottom - y, "chip-ground", radius=10)
    sheet.raw(inside.markup)
    sheet.closed()
    return bottom


def _abreast(sheet: Sheet, blocks: Sequence[Block], text: Texts, x: float, y: float, width: float) -> float:
    """As broad as each has cores, but no head gets too narrow for its words."""
    room = width - 2 * _GAP * (len(blocks) - 1)
    cores = [max(len(block.cores), 2) for block in blocks]
    widths = [room * count / sum(cores) for count in cores]
    lines = max(len(_heading(block, text, block_width)) for block, block_width in zip(blocks, widths, strict=True))
    bottom = y
    for block, block_width in zip(blocks, widths, strict=True):
        bottom = max(bottom, _block(sheet, block, text, x, y, block_width, lines))
        x += block_width + 2 * _GAP
    return bottom


def _block(sheet: Sheet, block: Block, text: Texts, x: float, y: float, width: float, lines: int) -> float:
    """Its words, then its cores; gives its lower edge. `lines` is how many the heads beside it have."""
    heading = _heading(block, text, width)
    for number, (left, right, hot) in enumerate(heading):
        baseline = y + 13 + number * LINE
        first = number == 0
        sheet.text(
            fitted(left, width, TITLE if first else BODY, bold=first),
            x,
            baseline,
            size=TITLE if first else BODY,
            bold=first,
            kind="chip-name" if first else "chip-hot" if hot else "chip-muted",
        )
        sheet.text(right, x + width, baseline, size=BODY, anchor="end", kind="chip-hot" if hot else "chip-ink")
    y += max(len(heading), lines) * LINE + 4
    whole = () if block.load is None else (CoreView(name="", load=block.load),)
    return _cores(sheet, block.cores or whole, text, x, y, width)


def _heading(block: Block, text: Texts, width: float) -> list[tuple[str, str, bool]]:
    """Lines of what stands left, what stands right, and whether the line is about heat."""
    title = text(f"board.{block.part}")
    hot = block.celsius is not None and block.celsius >= quantities.HOT_CELSIUS
    warm = "" if block.celsius is None else quantities.heat(block.celsius, text)[0]
    speed = "" if block.clock_hz is None else quantities.clock(block.clock_hz, text, block.top_hz)
    lines = []
    right = " · ".join(part for part in (speed, warm) if part)
    if block.name:
        both = text_width(title, TITLE, bold=True) + text_width(block.name, BODY) + 24
        lines = [(title, block.name, False)] if both <= width else [(title, "", False), (block.name, "", False)]
        lines = [(lines[0][0], fitted(lines[0][1], width, BODY), False), *lines[1:]]
    else:
        lines = [(title, "", False)]
    if right:
        if text_width(right, BODY) <= width:
            lines.append((right, "", hot))
        else:
            lines += [(part, "", hot and part == warm) for part in (speed, warm)]
    return lines


def _cores(sheet: Sheet, cores: Sequence[CoreView], text: Texts, x: float, y: float, width: float) -> float:
    cores = cores[:_MOST_CELLS]
    if not cores:
        return y
    height, least = next((height, least) for most, height, least in _CELLS if len(cores) <= most)
    abreast = max(1, min(len(cores), int((width + _CELL_GAP) // (least + _CELL_GAP))))
    rows = -(-len(cores) // abreast)
    abreast = -(-len(cores) // rows)  # full rows of one length
    cell_width = (width - _CELL_GAP * (abreast - 1)) / abreast
    for number, core in enumerate(cores):
        row, column = divmod(number, abreast)
        _core(
            sheet,
            core,
            text,
            (x + column * (cell_width + _CELL_GAP), y + row * (height + _CELL_GAP), cell_width, height),
        )
    return y + rows * (height + _CELL_GAP) - _CELL_GAP


def _core(sheet: Sheet, core: CoreView, text: Texts, place: tuple[float, float, float, float]) -> None:
    x, y, width, height = place
    load = "" if core.load is None else quantities.percent(core.load, text)
    speed = "" if core.clock_hz is None else quantities.clock(core.clock_hz, text)
    name = core.name and text("board.core", name=core.name)
    sheet.opened("chip-core", ": ".join(part for part in (name, ", ".join(filter(None, (load, speed)))) if part))
    sheet.box(x, y, width, height, "chip-cell", radius=6)
    if core.load:
        level = height * core.load
        sheet.box(x, y + height - level, width, level, "chip-load", radius=6)
    if height > 20:
        above = height > 40
        middle = y + height / 2 + 5
        if above:
            sheet.text(fitted(core.name, width - 10, 11), x + 7, y + 15, size=11, kind="chip-ink")
            speed = speed if text_width(speed, 11) + text_width(core.name, 11) < width - 22 else ""
            sheet.text(speed, x + width - 7, y + 15, size=11, anchor="end", kind="chip-ink")
            middle = y + height - 14
        size = next((size for size in (17.0, 13.0, 11.0) if text_width(load, size, bold=True) <= width - 4), 0.0)
        if size and (above or size <= 17):
            sheet.text(load, x + width / 2, middle, size=size, bold=True, anchor="middle", kind="chip-ink")
    sheet.closed()


def _pill(sheet: Sheet, placed: PlacedModel, text: Texts, x: float, y: float, width: float) -> float:
    """A model where it sits: its name, and beside or below it what it does there. Gives its lower edge."""
    doing = [] if placed.role == "whole" else [text(f"board.{placed.role}")]
    if placed.state != "ready":
        doing.append(text(f"board.{placed.state}"))
    elif placed.users:
        doing.append(text("board.at_work", count=placed.users))
    state = fitted(" · ".join(doing), width - 42, SMALL)
    below = bool(state) and text_width(placed.model, BODY) + text_width(state, SMALL) + 56 > width
    height = _PILL + LINE if below else _PILL
    sheet.opened("chip-seat", f"{placed.model}: {placed.placement}")
    sheet.box(x, y, width, height, "chip-pill", radius=_PILL / 2)
    middle = y + _PILL / 2
    mark = f"M{x + 16:.1f} {middle:.1f}m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0"
    sheet.path(mark, "chip-busy" if placed.users else "chip-idle")
    sheet.text(fitted(placed.model, width - 42, BODY), x + 28, middle + 4.5, size=BODY)
    if below:
        sheet.text(state, x + 28, middle + 4.5 + LINE, size=SMALL)
    else:
        sheet.text(state, x + width - 14, middle + 4.5, size=SMALL, anchor="end")
    sheet.closed()
    return y + height

"""The picture in words, for those who hear the page and for those who copy from it. Pure."""

from xml.sax.saxutils import escape

from trilithon.board.sysfs import format_cpu_list
from trilithon.web import quantities
from trilithon.web.board.chip import Block, ChipView
from trilithon.web.texts import Texts

__all__ = ["rows", "table"]


def rows(chip: ChipView, text: Texts) -> list[tuple[str, str]]:
    """What it is, and its value; nothing for what is not known."""
    table_rows: list[tuple[str, str]] = []
    for block in chip.blocks:
        table_rows += _block(block, text)
    for placed in chip.placed_models:
        what = text("board.seat_of", model=placed.model, unit=placed.unit.upper())
        state = [] if placed.state == "ready" else [text(f"board.{placed.state}")]
        doing = [text(f"board.{placed.role}"), *state, text("board.at_work", count=placed.users)]
        table_rows.append((what, ", ".join([placed.placement, *doing, quantities.size(placed.size_bytes, text)])))
    table_rows += [
        (text("board.zone_of", name=name), quantities.celsius(value, text)) for name, value in chip.temperatures
    ]
    table_rows += [(text("board.power_of", name=name), quantities.watts(value, text)) for name, value in chip.watts]
    table_rows += _memory(chip, text)
    return [*table_rows, (text("board.running"), str(chip.running)), (text("board.waiting"), str(chip.waiting))]


def _block(block: Block, text: Texts) -> list[tuple[str, str]]:
    title = text(f"board.{block.part}")
    if block.unit == "cpu" and block.cores:
        cores = format_cpu_list([int(core.name) for core in block.cores])
        title = " ".join(text("board.cluster", title=title, name=block.name, cores=cores).replace(" ,", ",").split())
    table_rows = []
    if block.load is not None:
        table_rows.append((text("board.load_of", what=title), quantities.percent(block.load, text)))
    if block.clock_hz is not None:
        table_rows.append((text("board.clock_of", what=title), quantities.clock(block.clock_hz, text, block.top_hz)))
    if block.celsius is not None:
        table_rows.append((text("board.temperature_of", what=title), quantities.celsius(block.celsius, text)))
    for core in block.cores:
        name = text("board.core", name=core.name)
        what = name if block.unit == "cpu" else f"{title}, {name}"
        if core.load is not None:
            table_rows.append((text("board.load_of", what=what), quantities.percent(core.load, text)))
        if core.clock_hz is not None:
            table_rows.append((text("board.clock_of", what=what), quantities.clock(core.clock_hz, text)))
    return table_rows


def _memory(chip: ChipView, text: Texts) -> list[tuple[str, str]]:
    memory = chip.memory
    table_rows = []
    if memory.total_bytes is not None:
        table_rows.append((text("board.memory_total"), quantities.size(memory.total_bytes, text)))
    for kind, count in memory.kinds:
        name = text(f"board.{kind.lower().replace(' ', '_')}")
        table_rows.append((text("board.memory_of", kind=name), quantities.size(count, text)))
    if memory.swap_bytes is not None:
        table_rows.append((text("board.swap_of"), quantities.size(memory.swap_bytes, text)))
    if memory.clock_hz is not None:
        table_rows.append((text("board.memory_clock_of"), quantities.clock(memory.clock_hz, text, memory.top_hz)))
    if memory.celsius is not None:
        what = text("board.memory")
        table_rows.append((text("board.temperature_of", what=what), quantities.celsius(memory.celsius, text)))
    return table_rows


def table(chip: ChipView, text: Texts) -> str:
    """HTML."""
    columns = "".join(f"<th scope='col'>{escape(text(f'board.{name}'))}</th>" for name in ("what", "value"))
    body = "".join(
        f"<tr><th scope='row'>{escape(what)}</th><td>{escape(value)}</td></tr>" for what, value in rows(chip, text)
    )
    return f"<table class='board-table'><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"

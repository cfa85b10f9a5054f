"""A frame of `trilithon doctor --watch` as a picture, as lines of text and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trilithon.board.sensors.probes import Reading
from trilithon.board.sensors.window import Window
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import parse_cpu_list
from trilithon.units import format_bytes

__all__ = ["frame_json", "plain_lines", "screen"]

# Two columns of 39 stand beside each other on a terminal of 80.
_COLUMNS = (("load", "temperature"), ("clock", "memory", "power"))
_TITLES = {"load": "Load", "clock": "Clocks", "temperature": "Temperatures", "memory": "Memory", "power": "Power"}
_NAME_WIDTH, _VALUE_WIDTH, _BAR_WIDTH = 18, 11, 8
_HOT_CELSIUS = 80.0  # as the bench warns: boards lose 15-20% to throttling from about there


def frame_json(window: Window) -> dict[str, Any]:
    """One line of `--watch --json`. `at_ns` is monotonic; what is absent is not there."""
    more = {"hung": window.hung} if window.hung else {}
    return {"at_ns": window.at_ns, "readings": [asdict(reading) for reading in window.readings()]} | more


def plain_lines(board: Board, window: Window) -> list[str]:
    """A line per reading, with its source."""
    lines = [board.describe(), _units(board)]
    readings = window.readings()
    width = max((len(reading.name) for reading in readings), default=0)
    for quantity, title in _TITLES.items():
        lines += [
            f"{title:<13} {reading.name:<{width}} {_value(reading):>{_VALUE_WIDTH}}  {reading.source}"
            for reading in readings
            if reading.quantity == quantity
        ]
    return [*lines, *_remarks(window, readings)]


def screen(board: Board, window: Window) -> Group:
    """Headed blocks of readings in two columns."""
    readings = window.readings()
    grid = Table.grid(padding=(0, 2, 0, 0))
    columns = [Text("\n").join(_blocks(readings, quantities, board)) for quantities in _COLUMNS]
    grid.add_row(*columns)
    head = [Text(board.describe(), style="bold"), Text(_units(board)), Text()]
    return Group(*head, grid, *(Text(remark, style="dim") for remark in _remarks(window, readings)))


def _blocks(readings: list[Reading], quantities: tuple[str, ...], board: Board) -> Iterator[Text]:
    for quantity in quantities:
        shown = [reading for reading in readings if reading.quantity == quantity]
        if shown:
            yield Text(_TITLES[quantity], style="bold")
            yield from (_line(reading, board) for reading in shown)
            yield Text()


def _units(board: Board) -> str:
    gpu = " ".join(part for part in ("GPU", board.gpu.name, f"({board.gpu.driver})") if part) if board.gpu else "no GPU"
    others = ", ".join(board.other_npus)
    npu = " ".join(part for part in ("NPU", board.npu.driver, board.npu.version) if part) if board.npu else others
    return f"{gpu} · {npu or 'no NPU'}"


def _line(reading: Reading, board: Board) -> Text:
    name = reading.name if len(reading.name) <= _NAME_WIDTH else reading.name[: _NAME_WIDTH - 1] + "…"
    hot = reading.quantity == "temperature" and reading.value >= _HOT_CELSIUS
    text = Text(f" {name:<{_NAME_WIDTH}}", no_wrap=True)
    text.append(f"{_value(reading):>{_VALUE_WIDTH}}", style="bold red" if hot else "")
    fraction = _fraction(reading, board)
    if fraction is not None:
        text.append(f" {_bar(fraction)}", style="cyan")
    return text


def _value(reading: Reading) -> str:
    match reading.quantity:
        case "load":
            return f"{reading.value:.0%}"
        case "clock":
            return f"{reading.value / 1e6:.0f} MHz"
        case "temperature":
            return f"{reading.value:.1f} °C"
        case "memory":
            return format_bytes(reading.value)
        case _:
            return f"{reading.value:.2f} W"


def _fraction(reading: Reading, board: Board) -> float | None:
    """How full its bar is; None where nothing says what the most would be."""
    match reading.quantity:
        case "load":
            return reading.value
        case "memory":
            return reading.value / board.memory_bytes if board.memory_bytes else None
        case "clock":
            top = _top_hertz(reading.name, board)
            return reading.value / top if top else None
        case _:
            return None


def _top_hertz(name: str, board: Board) -> float | None:
    if not name.startswith("cpu"):
        return next((clock.max_hz for clock in board.clocks if clock.unit == name.lower()), None)
    cpus = set(parse_cpu_list(name.removeprefix("cpu")))
    return max((c.max_khz * 1e3 for c in board.clusters if c.max_khz and cpus & set(c.cpus)), default=None)


def _bar(fraction: float) -> str:
    filled = round(min(max(fraction, 0.0), 1.0) * _BAR_WIDTH)
    return "█" * filled + "░" * (_BAR_WIDTH - filled)


def _remarks(window: Window, readings: list[Reading]) -> Iterator[str]:
    if not readings:
        yield "no reading yet"
    elif not any(reading.quantity == "power" for reading in readings):
        yield "no power meter readable by this user"
    if window.closed:
        yield f"only root may read: {', '.join(window.closed)}"
    if window.hung:
        yield f"left out, no answer: {window.hung}"

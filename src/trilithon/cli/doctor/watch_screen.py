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
from trilithon.cli.output import shown
from trilithon.language import Message, listed
from trilithon.units import format_bytes

__all__ = ["frame_json", "plain_lines", "screen"]

# Two columns of 39 stand beside each other on a terminal of 80.
_COLUMNS = (("load", "temperature"), ("clock", "memory", "power"))
_TITLES = {
    "load": Message("Load"),
    "clock": Message("Clocks"),
    "temperature": Message("Temperatures"),
    "memory": Message("Memory"),
    "power": Message("Power"),
}
_NAME_WIDTH, _VALUE_WIDTH, _BAR_WIDTH = 18, 11, 8
_HOT_CELSIUS = 80.0  # as the bench warns: boards lose 15-20% to throttling from about there


def frame_json(window: Window) -> dict[str, Any]:
    """One line of `--watch --json`. `at_ns` is monotonic; what is absent is not there."""
    more = {"hung": window.hung} if window.hung else {}
    return {"at_ns": window.at_ns, "readings": [asdict(reading) for reading in window.readings()]} | more


def plain_lines(board: Board, window: Window) -> list[str]:
    """A line per reading, with its source."""
    lines = [shown(board.describe()), shown(_units(board))]
    readings = window.readings()
    width = max((len(reading.name) for reading in readings), default=0)
    for quantity, title in _TITLES.items():
        lines += [
            f"{shown(title):<13} {reading.name:<{width}} {_value(reading):>{_VALUE_WIDTH}}  {reading.source}"
            for reading in readings
            if reading.quantity == quantity
        ]
    return [*lines, *map(shown, _remarks(window, readings))]


def screen(board: Board, window: Window) -> Group:
    """Headed blocks of readings in two columns."""
    readings = window.readings()
    grid = Table.grid(padding=(0, 2, 0, 0))
    columns = [Text("\n").join(_blocks(readings, quantities, board)) for quantities in _COLUMNS]
    grid.add_row(*columns)
    head = [Text(shown(board.describe()), style="bold"), Text(shown(_units(board))), Text()]
    return Group(*head, grid, *(Text(shown(remark), style="dim") for remark in _remarks(window, readings)))


def _blocks(readings: list[Reading], quantities: tuple[str, ...], board: Board) -> Iterator[Text]:
    for quantity in quantities:
        block = [reading for reading in readings if reading.quantity == quantity]
        if block:
            yield Text(shown(_TITLES[quantity]), style="bold")
            yield from (_line(reading, board) for reading in block)
            yield Text()


def _units(board: Board) -> str:
    gpu: str = Message("no GPU")
    if board.gpu:
        gpu = " ".join(part for part in ("GPU", board.gpu.name, f"({board.gpu.driver})") if part)
    npu: str = listed(board.other_npus) or Message("no NPU")
    if board.npu:
        npu = " ".join(part for part in ("NPU", board.npu.driver, board.npu.version) if part)
    return listed((gpu, npu), " · ")


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
            return shown(Message("{share:.0%}", share=reading.value))
        case "clock":
            return shown(Message("{clock:.0f} MHz", clock=reading.value / 1e6))
        case "temperature":
            return shown(Message("{celsius:.1f} °C", celsius=reading.value))
        case "memory":
            return shown(format_bytes(reading.value))
        case _:
            return shown(Message("{watts:.2f} W", watts=reading.value))


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
        yield Message("no reading yet")
    elif not any(reading.quantity == "power" for reading in readings):
        yield Message("no power meter readable by this user")
    if window.closed:
        yield Message("only root may read: {files}", files=listed(window.closed))
    if window.hung:
        yield Message("left out, no answer: {file}", file=window.hung)

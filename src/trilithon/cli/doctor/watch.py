"""`trilithon doctor --watch`: what the machine's sensors say now, twice a second, until q or Ctrl-C."""

import contextlib
import functools
import json
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.output import say
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.terminal import plain_console

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.board.sensors.window import Window
    from trilithon.board.snapshot import Board
    from trilithon.board.sysfs import Machine

__all__ = ["watch", "with_watch"]

_PERIOD_SECONDS = 0.5


def with_watch(command: click.Command) -> click.Command:
    """The command with an option `--watch` that takes its place; `--json` then gives a line per frame."""
    report = command.callback
    assert report is not None

    @functools.wraps(report)
    def watching(*, live: bool, **words: Any) -> None:
        if not live:
            report(**words)
            return
        if words.get("measure_clocks"):
            raise UserError(
                Message("--watch shows the clocks that the kernel claims; leave --measure-clocks out, or --watch")
            )
        from trilithon.board.sysfs import THIS_MACHINE

        watch(THIS_MACHINE, as_json=bool(words.get("as_json")))

    command.callback = watching
    option = click.Option(
        ["--watch", "live"], is_flag=True, help="Show the sensors live; q quits. JSON lines with --json."
    )
    command.params.append(option)
    return command


def watch(machine: "Machine", *, as_json: bool, period_seconds: float = _PERIOD_SECONDS) -> None:
    """On a terminal a picture that is drawn anew until q, elsewhere one; with `as_json` a line per frame until the
    reader goes. Raises KeyboardInterrupt for Ctrl-C, and for SIGTERM and SIGHUP too, so that the terminal is put back.
    """
    from trilithon.board.sensors.sampler import Sampler
    from trilithon.board.sensors.window import Window
    from trilithon.board.snapshot import read_board
    from trilithon.cli.doctor.watch_screen import frame_json, plain_lines

    live = sys.stdout.isatty() and not as_json
    with _stopped_by_signals(), Sampler(machine, period_seconds=period_seconds, whole_frames=True) as sampler:
        window = Window(sampler)
        sampler.start()
        if live:
            _watch_live(window, read_board(machine), period_seconds)
            return
        while True:
            window.wait(period_seconds)
            if as_json:
                say(json.dumps(frame_json(window), ensure_ascii=False))
                sys.stdout.flush()
            elif window.at_ns is not None or not window.can_see:
                say("\n".join(plain_lines(read_board(machine), window)))
                return


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_live(window: "Window", board: "Board", period_seconds: float) -> None:
    from rich.live import Live

    from trilithon.cli.doctor.watch_screen import screen

    console = plain_console(highlight=False)
    with _keys() as pressed, Live(screen(board, window), console=console, screen=True, auto_refresh=False) as picture:
        while not pressed(period_seconds / 5):
            if window.look():
                picture.update(screen(board, window), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds and says whether q was pressed. The terminal is put back at the end."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _never
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield functools.partial(_pressed, descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _never(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _pressed(descriptor: int, seconds: float) -> bool:
    import os

    ready, _, _ = select.select([descriptor], [], [], seconds)
    if not ready:
        return False
    keys = os.read(descriptor, 64)
    return not keys or b"q" in keys.lower()  # nothing: the terminal is gone

"""A campaign on each of several boards: OpenSSH starts it there, and its results come here."""

import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trilithon.errors import TrilithonError
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.over_ssh import run_there, ssh_words
from trilithon.measure.records import Campaign
from trilithon.results.formats import import_campaigns

__all__ = ["BoardBench", "bench_on"]

_CONNECTION_LOST = 255  # ssh(1), "EXIT STATUS"
_LAST_LINES = 3

Watch = Callable[[str, str], None]
"""Gets the name of a board, and what happens there now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardBench:
    """`campaign` as the board kept it, None where `problem` says why there is none."""

    board: str
    campaign: Campaign | None = None
    problem: str = ""


def bench_on(boards: Sequence[FleetBoard], words: Sequence[str], watch: Watch) -> list[BoardBench]:
    """`trilithon bench` with these words on all boards at once; one that fails holds up none of the others. Raises
    UserError for a board without an address for ssh, before anything begins."""
    command = ["trilithon", "bench", "--yes", "--progress", "json", "-o", "json", *words]
    running = [_Running(board, ssh_words(board, command), watch) for board in boards]
    try:
        for run in running:
            run.begin()
        return [run.result() for run in running]
    finally:
        for run in running:
            run.end()


class _Running:
    """The campaign of one board. A thread of its own reads what it says."""

    def __init__(self, board: FleetBoard, command: list[str], watch: Watch):
        self._board = board
        self._command = command
        self._watch = watch
        self._number: int | None = None
        self._has_begun = False
        self._last: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name=f"bench on {board.name}")
        self._done: BoardBench | None = None

    def begin(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader.start()

    def result(self) -> BoardBench:
        self._reader.join()
        assert self._done is not None
        return self._done

    def end(self) -> None:
        """Where we are stopped, ssh ends; the board's campaign stays there, to be resumed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        if self._reader.ident is not None:
            self._reader.join()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr:
            for line in self._process.stderr:
                self._take(line.rstrip())
        try:
            self._done = self._ended(self._process.wait())
        except TrilithonError as error:
            self._done = BoardBench(board=self._board.name, problem=error.args[0])

    def _take(self, line: str) -> None:
        try:
            step = json.loads(line)
        except ValueError:
            step = None
        if not isinstance(step, dict):
            self._last = [*self._last, line][-_LAST_LINES:] if line else self._last
        elif isinstance(step.get("campaign"), int):
            self._number = step["campaign"]
        elif isinstance(step.get("text"), str):
            self._has_begun = True
            done, planned = step.get("runs_done"), step.get("runs_planned")
            self._watch(self._board.name, f"{step['text']} ({done}/{planned})")

    def _ended(self, code: int) -> BoardBench:
        if self._number is None:
            reason = (self._last or [f"ssh: exit code {code}"])[-1].removeprefix("error: ")
            if code != _CONNECTION_LOST or not self._has_begun:
                raise TrilithonError(reason)
            command = f"ssh {shlex.quote(self._board.ssh)} trilithon bench --resume"
            raise TrilithonError("{reason}; go on there with: {command}", reason=reason, command=command)
        text = run_there(self._board, "trilithon", "results", "export", str(self._number), "-o", "trilithon")
        (campaign,) = import_campaigns(text.encode(), self._board.name)
        return BoardBench(board=self._board.name, campaign=campaign)

"""The gateway: HAProxy as a child, fed with what the boards say of themselves."""

import asyncio
import contextlib
import logging
import math
import shutil
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trilithon.errors import TrilithonError, UserError
from trilithon.fleet.about import answering_at
from trilithon.fleet.boards import FleetBoard, board_key, boards, boards_path
from trilithon.fleet.control import Control, ControlError
from trilithon.fleet.haproxy import Door, HaproxyFiles, Share, shares
from trilithon.fleet.relay import RelayTimes, relay_at
from trilithon.fleet.state import BoardState, BoardUnreachable, ask_board
from trilithon.serve.access.keys import key_store, keys
from trilithon.serve.access.scopes import is_allowed
from trilithon.settings import Configuration

__all__ = ["Gateway", "GatewayTimes", "client_keys"]

_START_SECONDS = 30.0
_KILL_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTimes:
    """`look_seconds`: changes of the files here, and boards that went down. `ask_seconds`: what the boards say.
    `frozen_seconds` after a board went down, what it holds is ended. `drain_seconds` is for running answers at the
    end."""

    look_seconds: float = 0.5
    ask_seconds: float = 10.0
    frozen_seconds: float = 30.0
    drain_seconds: float = 30.0
    relay: RelayTimes = field(default_factory=RelayTimes)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What HAProxy cannot change while it runs."""

    boards: tuple[FleetBoard, ...]
    keys: Mapping[str, str]
    parts: tuple[tuple[str, str, int], ...]


class Gateway:
    """`states` are the last words of each board. Runs in one event loop."""

    def __init__(
        self, configuration: Configuration, folder: Path, program: str, door: Door, times: GatewayTimes | None = None
    ):
        self.states: dict[str, BoardState] = {}
        self._configuration = configuration
        self._files = HaproxyFiles(folder)
        self._control = Control(self._files.admin)
        self._program = program
        self._door = door
        self._times = times or GatewayTimes()
        self._boards: tuple[FleetBoard, ...] = ()
        self._board_keys: dict[str, str] = {}
        self._shares: tuple[Share, ...] = ()
        self._clients: dict[str, str] = {}
        self._layout: _Layout | None = None
        self._stamps: tuple[object, ...] = ()
        self._asked = -float("inf")
        self._down_since: dict[str, float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def down(self) -> frozenset[str]:
        """The names of boards whose health fails."""
        return frozenset(self._down_since)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The task that feeds HAProxy, which ends with an error only. Raises UserError and TrilithonError where it
        cannot begin."""
        self._read_files()
        await self._ask(self._boards)
        self._shares = shares(self._boards, self.states)
        folder = self._files.folder
        async with (
            answering_at(folder / "about.sock", lambda: self.states),
            relay_at(folder / "relay.sock", folder / "inner.sock", self._times.relay),
        ):
            self._write()
            child = await self._start()
            feeding = asyncio.create_task(self._feed(child))
            try:
                yield feeding
            finally:
                for task in (*self._asking, feeding):
                    task.cancel()
                await asyncio.gather(*self._asking, feeding, return_exceptions=True)
                await self._stop(child)

    async def _start(self) -> asyncio.subprocess.Process:
        words = [self._program, "-W", "-db", "-f", str(self._files.configuration)]
        if setpriv := shutil.which("setpriv"):  # where we are killed, it must not go on with stale weights
            words = [setpriv, "--pdeathsig", "TERM", *words]
        log = self._files.folder / "haproxy.log"
        with log.open("ab") as stream:
            child = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=tuple(self._door.descriptors),
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not await self._control.is_there():
            if child.returncode is not None or time.monotonic() > deadline:
                await self._stop(child)
                raise TrilithonError("HAProxy did not start: {reason}", reason=_last_line(log))
            await asyncio.sleep(0.05)
        return child

    async def _stop(self, child: asyncio.subprocess.Process) -> None:
        """Running answers may end first."""
        ending = time.monotonic() + self._times.drain_seconds
        orders = ((signal.SIGUSR1, ending), (signal.SIGTERM, ending + _KILL_SECONDS), (signal.SIGKILL, math.inf))
        for number, until in orders:
            while child.returncode is None and time.monotonic() < until:
                child.send_signal(number)  # again and again: one that comes while it starts is lost
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), 0.5)

    async def _feed(self, child: asyncio.subprocess.Process) -> None:
        while True:
            await asyncio.sleep(self._times.look_seconds)
            if child.returncode is not None:
                log = self._files.folder / "haproxy.log"
                raise TrilithonError("HAProxy ended: {reason}", reason=_last_line(log))
            try:
                self._read_files()
            except UserError as error:
                _log.warning("the boards and keys stay as they were: %s", error)
            try:
                returned = await self._look_at_boards()
                if time.monotonic() - self._asked >= self._times.ask_seconds or returned:
                    self._asked = time.monotonic()
                    self._begin(self._ask(self._boards))
                await self._apply(child)
            except ControlError as error:
                _log.warning("HAProxy: %s", error)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        """A board that is slow to answer holds nothing up."""
        task = asyncio.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _read_files(self) -> None:
        """Where they changed. Raises UserError."""
        paths = (boards_path(self._configuration), key_store(self._configuration))
        stamps = tuple(map(_stamp, paths))
        if stamps == self._stamps:
            return
        self._stamps = stamps
        known = boards(self._configuration)
        self._board_keys = {board.name: board_key(board) for board in known}
        if {board.url for board in known} - {board.url for board in self._boards}:
            self._asked = -float("inf")
        self._boards = known
        self._clients = client_keys(self._configuration)
        self.states = {board.name: self.states.get(board.name, BoardState(name=board.name)) for board in known}

    async def _ask(self, known: Sequence[FleetBoard]) -> None:
        """What a board said last stays while it does not answer: it is back as soon as its health is."""

        async def ask(board: FleetBoard) -> None:
            try:
                state = await asyncio.to_thread(ask_board, board, self._board_keys.get(board.name, ""))
            except BoardUnreachable as problem:
                before = self.states.get(board.name, BoardState(name=board.name))
                if before.problem != str(problem):
                    _log.warning("board %s %s", board.name, problem)
                state = before.with_problem(problem.args[0])
            if board.name in self.states:
                self.states[board.name] = state

        await asyncio.gather(*map(ask, known))

    async def _look_at_boards(self) -> bool:
        """End what a board holds that has been down for long. Whether one came back."""
        returned = False
        now = time.monotonic()
        for name, load in (await self._control.loads()).items():
            if load.is_up:
                returned = self._down_since.pop(name, None) is not None or returned
            elif name not in self._down_since:
                self._down_since[name] = now
                _log.warning("board %s is down", name)
            elif now - self._down_since[name] >= self._times.frozen_seconds and load.requests:
                await self._control.end_requests(name, self._shares)
        return returned

    async def _apply(self, child: asyncio.subprocess.Process) -> None:
        """What changed: weights and keys while HAProxy runs, the rest with a reload, in which no request is cut."""
        before, self._shares = self._shares, shares(self._boards, self.states)
        if self._layout != self._laid_out():
            await asyncio.to_thread(self._write)
            child.send_signal(signal.SIGUSR2)
            return
        if changed := [part for part in self._shares if part not in before]:
            await self._control.weigh(changed)
        await self._use_keys()

    async def _use_keys(self) -> None:
        path = self._files.folder / "keys.map"
        text = "".join(f"{digest} {name}\n" for digest, name in self._clients.items())
        if path.read_text(encoding="utf-8") != text:
            await self._control.use_keys(path, self._clients)
            self._files.write_keys(self._clients)  # for the next reload

    def _laid_out(self) -> _Layout:
        parts = tuple((part.backend, part.board, part.slots) for part in self._shares)
        fixed = tuple(_undrained(board) for board in self._boards)
        return _Layout(fixed, dict(self._board_keys), parts)

    def _write(self) -> None:
        """And check it. Raises TrilithonError."""
        self._files.write_keys(self._clients)
        self._files.write(self._boards, self._board_keys, self._shares, self._door)
        self._files.check(self._program, self._door.descriptors)
        self._layout = self._laid_out()


def client_keys(configuration: Configuration) -> dict[str, str]:
    """SHA-256 and name of each key of this machine that may ask models. Raises UserError."""
    return {key.digest: key.name for key in keys(configuration) if is_allowed(key.scope, "chat")}


def _undrained(board: FleetBoard) -> FleetBoard:
    return replace(board, drained=False)


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    alerts = [line for line in lines if "ALERT" in line]
    return (alerts or lines or ["see its log"])[-1][:500]

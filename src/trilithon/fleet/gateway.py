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
from trilithon.fleet.haproxy import KEY_REQUIRED, Door, HaproxyFiles, Share, shares
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
    end. A board that takes longer than `health_seconds` for its health is down."""

    look_seconds: float = 0.5
    health_seconds: float = 0.6
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
        self._used_clients: dict[str, str] = {}
        self._worker = ""
        self._layout: _Layout | None = None
        self._refused: _Layout | None = None
        self._refused_at = 0.0
        self._stamps: dict[Path, object] = {}
        self._warnings: dict[str, str] = {}
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
        self._read_clients()
        self._read_boards()
        await self._ask(self._boards)
        self._shares = shares(self._boards, self.states)
        folder = self._files.folder
        async with (
            answering_at(folder / "about.sock", lambda: self.states),
            relay_at(folder / "relay.sock", folder / "inner.sock", self._times.relay),
        ):
            self._files.write_keys(self._clients)
            self._write(self._laid_out(self._shares), self._shares)
            child = await self._start()
            feeding = asyncio.create_task(self._feed(child))
            drain_seconds = 0.0  # after an error, and where this was cancelled
            try:
                yield feeding
                drain_seconds = self._times.drain_seconds
            finally:
                for task in (*self._asking, feeding):
                    task.cancel()
                await asyncio.gather(*self._asking, feeding, return_exceptions=True)
                await self._stop(child, drain_seconds)

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
                await self._stop(child, 0.0)
                raise TrilithonError("HAProxy did not start: {reason}", reason=_last_line(log))
            await asyncio.sleep(0.05)
        return child

    async def _stop(self, child: asyncio.subprocess.Process, drain_seconds: float) -> None:
        """Running answers may end first, unless this is cancelled."""
        ending = time.monotonic() + drain_seconds
        orders = ((signal.SIGUSR1, ending), (signal.SIGTERM, ending + _KILL_SECONDS), (signal.SIGKILL, math.inf))
        try:
            for number, until in orders:
                while child.returncode is None and time.monotonic() < until:
                    child.send_signal(number)  # again and again: one that comes while it starts is lost
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(child.wait(), 0.5)
        finally:
            if child.returncode is None:
                child.terminate()
                try:
                    await asyncio.wait_for(child.wait(), _KILL_SECONDS)
                except TimeoutError:
                    child.kill()

    async def _feed(self, child: asyncio.subprocess.Process) -> None:
        while True:
            await asyncio.sleep(self._times.look_seconds)
            if child.returncode is not None:
                log = self._files.folder / "haproxy.log"
                raise TrilithonError("HAProxy ended: {reason}", reason=_last_line(log))
            for what, read in (("keys", self._read_clients), ("boards", self._read_boards)):
                try:
                    read()
                    self._warn(what)
                except UserError as error:
                    self._warn(what, f"the {what} stay as they were: {error}")
            try:
                returned = await self._look_at_boards()
                if time.monotonic() - self._asked >= self._times.ask_seconds or returned:
                    self._asked = time.monotonic()
                    self._begin(self._ask(self._boards))
                await self._apply(child)
                self._warn("HAProxy")
            except (ControlError, OSError) as error:
                self._warn("HAProxy", f"HAProxy: {error}")

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        """A board that is slow to answer holds nothing up."""
        task = asyncio.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _warn(self, what: str, text: str = "") -> None:
        """Once, and not at each look; an empty text is the end of the problem."""
        if text and self._warnings.get(what) != text:
            _log.warning("%s", text)
        self._warnings[what] = text

    def _changed(self, *paths: Path) -> dict[Path, object]:
        """Their stamps where one of them is another than before, to be kept once they were read."""
        stamps = {path: _stamp(path) for path in paths}
        return {} if stamps.items() <= self._stamps.items() else stamps

    def _read_clients(self) -> None:
        """Where they changed. Apart from the boards: a key that was revoked ends whatever is wrong there. Once there
        is a key, one is needed, even where the last one is revoked. Raises UserError."""
        if stamps := self._changed(key_store(self._configuration)):
            clients = client_keys(self._configuration)
            if (clients and not self._door.no_key) or KEY_REQUIRED in self._clients:
                clients[KEY_REQUIRED] = "yes"
            self._clients = clients
            self._stamps |= stamps

    def _read_boards(self) -> None:
        """Where they or their keys changed. Raises UserError."""
        key_files = [Path(board.key_file) for board in self._boards if board.key_file]
        stamps = self._changed(boards_path(self._configuration), *key_files)
        if not stamps:
            return
        known = boards(self._configuration)
        self._board_keys = {board.name: board_key(board) for board in known}
        if {board.url for board in known} - {board.url for board in self._boards}:
            self._asked = -float("inf")
        self._boards = known
        self.states = {board.name: self.states.get(board.name, BoardState(name=board.name)) for board in known}
        self._stamps |= stamps

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
        """What changed: keys and weights while HAProxy runs, the rest with a reload, in which no request is cut. A new
        process of HAProxy is told all of it: its files may be older. Raises ControlError and OSError."""
        worker = await self._control.worker()
        if worker != self._worker or self._clients != self._used_clients:
            self._files.write_keys(self._clients)  # for the next reload
            await self._control.use_keys(self._files.keys, self._clients)
            self._used_clients = self._clients
        parts = shares(self._boards, self.states)
        layout = self._laid_out(parts)
        if layout != self._layout and await self._is_written(layout, parts):
            self._shares = parts
            child.send_signal(signal.SIGUSR2)
            return
        assert self._layout is not None
        old = self._shares if worker == self._worker else ()
        changed = [part for part in parts if part not in old and _place(part) in self._layout.parts]
        await self._control.weigh(changed)
        self._shares, self._worker = parts, worker

    async def _is_written(self, layout: _Layout, parts: Sequence[Share]) -> bool:
        """One that HAProxy refuses, for example for a file that is gone, is tried again as often as boards are
        asked."""
        now = time.monotonic()
        if layout == self._refused and now - self._refused_at < self._times.ask_seconds:
            return False
        try:
            await asyncio.to_thread(self._write, layout, parts)
        except (OSError, TrilithonError) as error:
            self._refused, self._refused_at = layout, now
            self._warn("layout", f"the gateway goes on with the boards that it has: {error}")
            return False
        self._refused = None
        self._warn("layout")
        return True

    def _laid_out(self, parts: Sequence[Share]) -> _Layout:
        fixed = tuple(replace(board, drained=False) for board in self._boards)
        return _Layout(fixed, dict(self._board_keys), tuple(map(_place, parts)))

    def _write(self, layout: _Layout, parts: Sequence[Share]) -> None:
        """And check it. Raises OSError and TrilithonError."""
        self._files.write(layout.boards, layout.keys, parts, self._door, self._times.health_seconds)
        self._files.check(self._program, self._door.descriptors)
        self._layout = layout


def client_keys(configuration: Configuration) -> dict[str, str]:
    """SHA-256 and name of each key of this machine that may ask models. Raises UserError."""
    return {key.digest: key.name for key in keys(configuration) if is_allowed(key.scope, "chat")}


def _place(part: Share) -> tuple[str, str, int]:
    return part.backend, part.board, part.slots


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    alerts = [line for line in lines if "ALERT" in line]
    return (alerts or lines or ["see its log"])[-1][:500]

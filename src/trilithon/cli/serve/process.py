"""The server as a process: its service put together, uvicorn around it, its own CPUs, and an end in good order."""

import asyncio
import contextlib
import gc
import math
import os
import shutil
import signal
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from trilithon.board.snapshot import Board
from trilithon.board.tuning.pinning import open_files
from trilithon.cli.serve.listening import BACKLOG, has_terminal
from trilithon.engines.base import Placement
from trilithon.errors import TrilithonError, UserError
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import keep_to_cpus, workspace
from trilithon.serve.access.security import AccessRules
from trilithon.serve.app import ServeOptions, create_app
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.http.connections import ACCEPTED_AT_ONCE
from trilithon.serve.http.protocol import PatientProtocol
from trilithon.serve.service import Service, placed_for, pool_key, task_of
from trilithon.settings import Configuration

if TYPE_CHECKING:
    from trilithon.web.context import AppContext

__all__ = [
    "Listening",
    "ServeSettings",
    "beside",
    "keep_off_the_models_cpus",
    "opened_service",
    "pinned_placement",
    "serve_until_told",
]

_KEEP_ALIVE_SECONDS = 75  # as nginx; uvicorn's 5 s would make every chat connect anew
_AFTER_DRAIN_SECONDS = 5.0
_LATE_SECONDS = 0.05
# A client at work takes two, and the usual 1,024 are soon gone.
_OPEN_FILES = 1 << 16
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOPPED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What the user asked of the models' side. `paths` are files to serve besides the models that are here."""

    paths: tuple[Path, ...] = ()
    placement: str = ""
    context: int = 4096
    slots: int = 1
    budget_bytes: int | None = None
    keep_alive_seconds: float = 300.0
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """What the user asked of the network's side. `context` is what the pages show, None for the API alone. `ready` and
    `ending` are called once each, in the server's thread; `leftovers` are what has to go when the process ends at
    once. `reload` is called at SIGHUP, with what guards the application and the context of TLS; None: SIGHUP ends the
    server."""

    sockets: Sequence[socket]
    options: ServeOptions = field(default_factory=ServeOptions)
    certificate: Path | None = None
    private_key: Path | None = None
    leftovers: Sequence[Path] = ()
    context: "AppContext | None" = None
    ready: Callable[[], None] = lambda: None
    ending: Callable[[], None] = lambda: None
    reload: Callable[[AccessRules, ssl.SSLContext | None], Awaitable[None]] | None = None


@contextlib.contextmanager
def opened_service(wishes: ServeSettings, configuration: Configuration, board: Board) -> Iterator[tuple[Service, Path]]:
    """With the private folder of its children, which goes at the end. Raises UserError for wishes that cannot be."""
    with workspace() as folder:
        shelf = Catalog(
            configuration,
            board,
            paths=wishes.paths,
            placement=wishes.placement,
            context=wishes.context,
            slots=wishes.slots,
        )
        shelf.check_placement()
        pool = Pool(
            configuration, folder, budget_bytes=wishes.budget_bytes, keep_alive_seconds=wishes.keep_alive_seconds
        )
        yield Service(shelf, pool), folder


def keep_off_the_models_cpus(board: Board) -> tuple[int, ...]:
    """On big.LITTLE this process works on the little cores, so that it takes nothing from the models; which ones.
    Children get the CPUs of their placement, or all that were ours."""
    allowed = os.sched_getaffinity(0)
    little = {cpu for cluster in board.clusters if cluster.kind == "little" for cpu in cluster.cpus} & allowed
    if not little or little == allowed:
        return ()
    keep_to_cpus(little)
    return tuple(sorted(little))


def serve_until_told(service: Service, listening: Listening, pins: Sequence[str] = ()) -> None:
    """Until SIGTERM, SIGINT or the end of the terminal: then what is at work may end within the options' limit. A
    second one ends it at once, with exit code 130. Any other SIGHUP reads the settings again. Raises UserError for
    pins and certificates that are no good."""
    placements = [pinned_placement(service, name) for name in pins]
    server = _UvicornServer(_config(service, listening), service, listening)

    async def run() -> None:
        for key, placement in placements:
            service.pool.pin(key, placement)
        await server.serve(sockets=list(listening.sockets))

    with open_files(_OPEN_FILES):
        asyncio.run(run())


def pinned_placement(service: Service, name: str) -> tuple[str, Placement]:
    """The pool's key, and the placement for what the model does."""
    entry = service.shelf.find(name)
    placement = service.shelf.placement(entry)
    task = task_of(placement.file)
    return pool_key(entry, task), placed_for(task, placement)


@contextlib.contextmanager
def beside(service: Service, listening: Listening, board: Board) -> Iterator[None]:
    """The server in a thread of its own, up when the block is entered and gone when it is left."""
    up = threading.Event()
    server = _UvicornServer(_config(service, listening), service, listening, up.set)

    def run() -> None:
        keep_off_the_models_cpus(board)
        server.run(list(listening.sockets))

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        while not up.wait(0.05):
            if not thread.is_alive():
                raise TrilithonError("the server did not start; see its output above")
        yield
    finally:
        server.should_exit = True
        thread.join()


class _UvicornServer(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, listening: Listening, up: Callable[[], None] | None = None
    ):
        super().__init__(config)
        self._service = service
        self._listening = listening
        self._up = up or listening.ready
        self._drained: asyncio.Task[None] | None = None
        self._had_terminal = has_terminal()
        self._reloads: set[asyncio.Future[None]] = set()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():  # uvicorn listens anew, with the number of connections to accept at once
            listening.listen(BACKLOG)
        # Imported modules live to the end. Leaving them out of collections took 12% off the CPU time of a short chat.
        gc.collect()
        gc.freeze()
        self._up()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        # From now on, those who wait for a model are told to come again; those at work may end.
        limit = self._listening.options.drain_seconds
        self._drained = asyncio.create_task(self._service.pool.drain(limit))
        closing = asyncio.create_task(self._close_late_connections())
        await super().shutdown(sockets)
        closing.cancel()
        await self._drained

    async def _close_late_connections(self) -> None:
        """uvicorn closes those that it knows when it stops listening. One that was being accepted, or was in its TLS
        handshake, would be served until the limit, and hold the end up."""
        while True:
            await asyncio.sleep(_LATE_SECONDS)
            for connection in list(self.server_state.connections):
                if isinstance(connection, PatientProtocol):
                    connection.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal once more at the end, and so lose the exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        # Under nohup, which ignores SIGHUP, that stays ignored.
        ending = [
            signal_number
            for signal_number in _ENDING
            if signal_number != signal.SIGHUP or signal.getsignal(signal_number) != signal.SIG_IGN
        ]
        for number in ending:
            loop.add_signal_handler(number, self._hung_up if number == signal.SIGHUP else self._asked_to_end)
        try:
            yield
        finally:
            for number in ending:
                loop.remove_signal_handler(number)

    def _hung_up(self) -> None:
        """SIGHUP comes from who changed the settings, or from the kernel when the terminal was closed."""
        if self._listening.reload is None or self.should_exit or (self._had_terminal and not has_terminal()):
            self._asked_to_end()
            return
        assert isinstance(self.config.app, FastAPI)
        task = asyncio.ensure_future(self._listening.reload(self.config.app.state.access, self.config.ssl))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _asked_to_end(self) -> None:
        if self.should_exit:
            # The kernel ends the children with this thread (see engines.wire.guard); files would be left.
            for leftover in self._listening.leftovers:
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
            os._exit(_STOPPED)
        self.should_exit = True  # first: the reader of our stderr may be gone
        self._listening.ending()


def _config(service: Service, listening: Listening) -> uvicorn.Config:
    app = create_app(service, listening.options)
    if listening.context is not None:
        from trilithon.web.app import install

        install(app, listening.context)
    app.middleware_stack = app.build_middleware_stack()  # now, and not at the start, where uvicorn would exit
    config = uvicorn.Config(
        app,
        lifespan="on",
        loop="asyncio",
        http=PatientProtocol,
        backlog=ACCEPTED_AT_ONCE,
        ws="none" if listening.context is None else "websockets-sansio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(listening.options.drain_seconds + _AFTER_DRAIN_SECONDS),
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.private_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl's errors are some too
        raise UserError(
            "--tls-cert {certificate}, --tls-key {private_key}: {reason}; both are PEM files, and the "
            "key belongs to the certificate",
            certificate=listening.certificate,
            private_key=listening.private_key,
            reason=error.strerror or error,
        ) from error
    return config

"""Where a child answers: on its Unix socket, or on a port of the loopback device for a server without such sockets."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trilithon.board.processes import listening_port, read_process
from trilithon.engines.base import Launch
from trilithon.engines.wire.dialect import Dialect

__all__ = ["Endpoint"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Endpoint:
    """`key` goes with every request: other users of this machine can reach a port, and may not be answered. `host` is
    the header of that name, and `prefix` stands before every path.

    A server on the loopback device is started with port 0, so that the kernel chooses one that is free, and the port
    is that of the socket on which the process `pid` listens. Once it has ended, another program may have that port:
    nothing is sent where it does not live after the connection was made."""

    def __init__(self, socket: Path, *, key: str = "", dialect: Dialect | None = None):
        self.socket = socket
        self.host, self.prefix = "runner", ""
        self.key = key
        self.dialect = dialect
        # A dialect's questions follow each other in one slot: requests that arrive together must not ask at once.
        self.translating = asyncio.Lock()
        self.pid: int | None = None
        self._port: int | None = None

    @classmethod
    def of(cls, launch: Launch) -> "Endpoint":
        return cls(launch.socket, key=launch.loopback_key, dialect=launch.dialect)

    async def connect(self, protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        if not self.key:
            return await loop.create_unix_connection(protocol, str(self.socket))
        if self._port is None and self.pid is not None:
            self._port = listening_port(self.pid)
        if self._port is None:
            raise ConnectionRefusedError("the engine does not listen yet")
        transport, made = await loop.create_connection(protocol, "127.0.0.1", self._port)
        state = None if self.pid is None else read_process(self.pid)
        if state is None or state.ended:
            transport.abort()
            raise ConnectionRefusedError("the engine has ended")
        return transport, made

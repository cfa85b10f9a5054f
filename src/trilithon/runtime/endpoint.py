"""Where a child answers: on its Unix socket, or on a port of the loopback device for a server without such sockets."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trilithon.board.processes import listening_port
from trilithon.engines.base import Launch
from trilithon.engines.wire.dialect import Dialect

__all__ = ["Endpoint"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Endpoint:
    """`key` goes with every request: other users of this machine can reach a port, and may not be answered.

    A server on the loopback device is started with port 0, so that the kernel chooses one that is free, and the port
    is that of the socket on which the process `pid` listens. No other program can stand in for it."""

    def __init__(self, socket: Path, *, key: str = "", dialect: Dialect | None = None):
        self.socket = socket
        self.key = key
        self.dialect = dialect
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
        return await loop.create_connection(protocol, "127.0.0.1", self._port)

"""HAProxy's admin socket: weights, keys, which boards are up, and an end to what a frozen board holds."""

import asyncio
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from trilithon.fleet.haproxy import Share

__all__ = ["BoardLoad", "Control", "ControlError"]

_SECONDS = 5.0
# HAProxy reads a command into one buffer.
_MOST_AT_ONCE = 100


class ControlError(Exception):
    """HAProxy does not answer, or refuses a command."""


class BoardLoad(dict[str, str]):
    """One line of `show stat`, by the names of its columns."""

    @property
    def is_up(self) -> bool:
        return self.get("status", "").startswith(("UP", "no check"))

    @property
    def requests(self) -> int:
        return int(self.get("scur") or 0)


class Control:
    def __init__(self, socket: Path):
        self._socket = str(socket)

    async def is_there(self) -> bool:
        try:
            return "Version" in await self.ask("show info")
        except ControlError:
            return False

    async def ask(self, command: str) -> str:
        """Raises ControlError."""
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(f"{command}\n".encode())
                    return (await reader.read()).decode(errors="replace").strip()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise ControlError(f"{command.partition(' ')[0]}: {error}") from error

    async def worker(self) -> str:
        """The number of the process that answers; after a reload it is another one. Raises ControlError."""
        number = re.search(r"^Pid: (\d+)", await self.ask("show info"), re.MULTILINE)
        if number is None:
            raise ControlError("show info: no Pid")
        return number[1]

    async def order(self, commands: Sequence[str]) -> None:
        """Raises ControlError where one of them is refused."""
        for start in range(0, len(commands), _MOST_AT_ONCE):
            answer = await self.ask("; ".join(commands[start : start + _MOST_AT_ONCE]))
            if answer:
                raise ControlError(" ".join(answer.split())[:200])

    async def weigh(self, shares: Sequence[Share]) -> None:
        await self.order([f"set server {part.backend}/{part.board} weight {part.weight}" for part in shares])

    async def use_keys(self, map_file: Path, clients: Mapping[str, str]) -> None:
        """In one step: no request meets half of them."""
        version = (await self.ask(f"prepare map {map_file}")).rpartition(" ")[2]
        if not version.isdecimal():
            raise ControlError(f"prepare map: {version}")
        await self.order([f"add map @{version} {map_file} {digest} {name}" for digest, name in clients.items()])
        await self.order([f"commit map @{version} {map_file}"])

    async def loads(self) -> dict[str, BoardLoad]:
        """By the names of boards. Raises ControlError."""
        text = (await self.ask("show stat")).removeprefix("# ")
        rows = (BoardLoad(row) for row in csv.DictReader(io.StringIO(text)))
        return {
            row["pxname"].removeprefix("board-"): row
            for row in rows
            if row.get("svname") == "board" and row.get("pxname", "").startswith("board-")
        }

    async def end_requests(self, board: str, shares: Sequence[Share]) -> None:
        """Those that the board holds; the relay tells their clients."""
        servers = [f"{part.backend}/{part.board}" for part in shares if part.board == board]
        await self.order([f"shutdown sessions server {server}" for server in [*servers, f"board-{board}/board"]])

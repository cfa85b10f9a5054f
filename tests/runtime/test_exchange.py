"""One request over a socket, against servers that do not read to its end."""

import asyncio
import contextlib
from pathlib import Path

from trilithon.runtime.exchange import Exchange

ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


def test_a_server_that_answers_by_the_head_alone_is_heard(tmp_path: Path) -> None:
    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            writer.write(ANSWER)
            writer.close()
            await writer.wait_closed()

    async def ask(socket: Path) -> tuple[int | None, bytes]:
        async with Exchange.open(socket, "POST", "/infill", {"input_prefix": "x" * 500}) as exchange:
            content = b""
            while not exchange.complete:
                await exchange.wait(10)
                content += b"".join(piece for _, piece in exchange.read())
            return exchange.status, content

    async def many() -> None:
        server = await asyncio.start_unix_server(answer_and_close, str(tmp_path / "s"))
        try:
            answers = await asyncio.gather(*(ask(tmp_path / "s") for _ in range(50)))
        finally:
            server.close()
            await server.wait_closed()
        assert set(answers) == {(404, b"no")}

    asyncio.run(many())

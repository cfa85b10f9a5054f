"""The relay between a client and boards that break off where the test says it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from live_boards import until

from trilithon.fleet.error_events import Problem, error_answer, error_event
from trilithon.fleet.http_parts import chunk
from trilithon.fleet.relay import RelayTimes, relay_at
from trilithon.serve.anthropic import routes as anthropic
from trilithon.serve.http.dialects import error_body
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.keep_alive import BLANK, COMMENT, PING
from trilithon.serve.ollama import answers as ollama
from trilithon.serve.openai import routes as openai

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-trilithon-board: %b\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS, NDJSON, JSON = b"text/event-stream", b"application/x-ndjson", b"application/json"
TOKEN = b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n'
LAST = b"data: [DONE]\n\n"
CHAT = "/v1/chat/completions"
HANG = b"hang"

Script = Sequence[bytes]


@asynccontextmanager
async def relayed(folder: Path, *scripts: Script, silence: float = 30.0) -> AsyncIterator[tuple[Path, list[bytes]]]:
    """Each request gets the next script: what is sent before the connection is closed. With the requests that came."""
    requests: list[bytes] = []

    async def board(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(1 << 20))
        for piece in scripts[len(requests) - 1]:
            if piece == HANG:
                await reader.read(1)
                requests.append(b"left")
                break
            writer.write(piece)
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_unix_server(board, str(folder / "inner"))
    async with relay_at(folder / "relay", folder / "inner", RelayTimes(silence_seconds=silence)):
        yield folder / "relay", requests
    server.close()


async def ask(place: Path, path: str = CHAT, method: str = "POST") -> tuple[bytes, bytes]:
    """Head and body of the answer, the body without its chunks' sizes."""
    reader, writer = await asyncio.open_unix_connection(str(place))
    body = b'{"model": "m"}'
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if b"chunked" not in head:
        return head, rest
    assert rest.endswith(b"0\r\n\r\n"), rest
    content = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return head, content


def visiting(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(limited())


def stream(*pieces: bytes, board: bytes = b"rock1", kind: bytes = EVENTS, ended: bool = True) -> Script:
    return [HEAD % (kind, board), *map(chunk, pieces), *([b"0\r\n\r\n"] if ended else [])]


def test_a_whole_stream_passes_as_it_is(tmp_path: Path) -> None:
    async def visit() -> None:
        async with relayed(tmp_path, stream(COMMENT, TOKEN[:9], TOKEN[9:], LAST)) as (place, requests):
            head, content = await ask(place)
            assert content == COMMENT + TOKEN + LAST
            assert b"x-trilithon-board: rock1" in head
            assert requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            assert requests[0].endswith(b'{"model": "m"}')

    visiting(visit)


@pytest.mark.parametrize(
    ("path", "kind", "token", "keep_alive", "event"),
    [
        (CHAT, EVENTS, TOKEN, COMMENT, b'data: {"error":{"message":"board rock1 was lost in the middle'),
        ("/v1/responses", EVENTS, TOKEN, COMMENT, b'event: error\ndata: {"type":"error","code":"server_error",'),
        ("/v1/messages", EVENTS, TOKEN, PING, b'event: error\ndata: {"type":"error","error":{"type":"api_error",'),
        ("/api/chat", NDJSON, b'{"message": {}}\n', BLANK, b'{"error":"board rock1 was lost in the middle of this'),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error_event_or_begins_again(
    tmp_path: Path, path: str, kind: bytes, token: bytes, keep_alive: bytes, event: bytes
) -> None:
    broken_late = stream(keep_alive, token, token[:7], kind=kind, ended=False)
    broken_early = stream(keep_alive, token[:7], kind=kind, ended=False)
    second = stream(keep_alive, token, board=b"rock2", kind=kind)

    async def visit() -> None:
        async with relayed(tmp_path, broken_late, broken_early, second) as (place, requests):
            _, content = await ask(place, path)
            assert content.startswith(keep_alive + token + event)  # the part of an event is left out
            assert len(requests) == 1
            _, content = await ask(place, path)
            assert content == keep_alive + keep_alive + token
            assert requests[1] == requests[2]

    visiting(visit)


def test_no_board_is_asked_more_often_than_three_times(tmp_path: Path) -> None:
    nothing: Script = [b""]
    early = stream(COMMENT, ended=False)
    own = [b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\n<htm>"]

    async def visit() -> None:
        async with relayed(tmp_path, nothing, nothing, nothing, early, early, early, early, own, own) as (
            place,
            requests,
        ):
            head, body = await ask(place)
            assert head.startswith(b"HTTP/1.1 502 ")
            assert json.loads(body)["error"]["type"] == "server_error"
            assert len(requests) == 3
            _, content = await ask(place)
            assert content.startswith(COMMENT * 3 + b'data: {"error":')
            assert len(requests) == 6
            _, content = await ask(place)  # the stream is open when there is no other board
            assert content.startswith(COMMENT + b'data: {"error":{"message":"no board can take this request')
            head, body = await ask(place, "/v1/messages")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 5" in head
            assert json.loads(body)["error"]["type"] == "overloaded_error"

    visiting(visit)


def test_what_another_board_says_in_an_open_stream(tmp_path: Path) -> None:
    early = stream(COMMENT, ended=False)
    head = HEAD.replace(b"200 OK", b"400 Bad Request").replace(b"transfer-encoding: chunked", b"content-length: %d")
    lost = [b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"]

    def refusal(body: bytes) -> Script:
        return [head % (JSON, b"rock2", len(body)) + body]

    async def visit() -> None:
        long = refusal(b'{"error": {"message": "too long", "type": "invalid_request_error", "code": "length"}}')
        scripts = [early, long, early, refusal(b"what"), early, lost, stream(TOKEN, LAST), early, lost, lost]
        async with relayed(tmp_path, *scripts) as (place, _):
            event = (
                b'data: {"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"length"}}'
            )
            assert (await ask(place))[1] == COMMENT + event + b"\n\n"
            assert b"board rock2 answered with status 400" in (await ask(place))[1]
            assert (await ask(place))[1] == COMMENT + TOKEN + LAST
            assert b"no board finished this request" in (await ask(place))[1]

    visiting(visit)


def test_an_answer_that_is_no_stream_is_whole_or_asked_for_again(tmp_path: Path) -> None:
    head = HEAD.replace(b"transfer-encoding: chunked", b"content-length: 9") % (JSON, b"rock1")
    lasting = b'{"a": "' + b"x" * (17 << 20) + b'"}'
    long_head = head.replace(b": 9", b": %d" % len(lasting))
    bad_request = head.replace(b"200 OK", b"400 Bad Request")

    async def visit() -> None:
        scripts = [[head, b'{"a"'], [head, b'{"a": 12}'], [bad_request, b'{"a": 12}'], [long_head, lasting]]
        async with relayed(tmp_path, *scripts) as (place, requests):
            answered, body = await ask(place)
            assert (body, b"content-length: 9" in answered, len(requests)) == (b'{"a": 12}', True, 2)
            answered, body = await ask(place)
            assert (answered.split(b"\r\n")[0], body) == (b"HTTP/1.1 400 Bad Request", b'{"a": 12}')
            assert (await ask(place))[1] == lasting

    visiting(visit)


def test_a_silent_board_and_a_client_that_leaves(tmp_path: Path) -> None:
    silent = [*stream(TOKEN, ended=False), HANG]

    async def visit() -> None:
        async with relayed(tmp_path, silent, silent, silent, silence=0.2) as (place, requests):
            _, content = await ask(place)
            assert b"board rock1 was silent for too long in the middle of this answer" in content
            await until(lambda: requests[-1] == b"left")
        async with relayed(tmp_path, silent) as (place, requests):
            reader, writer = await asyncio.open_unix_connection(str(place))
            writer.write(b"POST /api/chat HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await until(lambda: requests[-1:] == [b"left"])

    visiting(visit)


def test_errors_have_the_words_of_the_boards_own_apis() -> None:
    theirs = ApiError("lost", status=502, kind="server_error")
    ours = Problem(message="lost")
    for form, path in ((openai.STREAM, "/v1/"), (anthropic._STREAM, "/v1/messages"), (ollama.STREAM, "/api/chat")):
        event, expected = error_event(path, ours), form.broken(theirs)
        assert _events(event) == _events(expected)
        assert (event[-2:], event.count(b"\n")) == (expected[-2:], expected.count(b"\n"))
        body = error_answer(path, ours).partition(b"\r\n\r\n")[2]
        assert json.loads(body) == error_body(path, theirs)


def _events(content: bytes) -> list[object]:
    lines = content.decode().split("\n")
    return [json.loads(line[line.index("{") :]) if "{" in line else line for line in lines]

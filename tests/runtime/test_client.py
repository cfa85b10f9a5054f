"""The client against a server that misbehaves in every way that a dying, slow or strange engine can."""

import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.wire.messages import Candidate, Chat, Completion, Event, Finished, PromptProgress, Timings, Token
from trilithon.errors import EngineError, EngineTimeout
from trilithon.runtime.client import Client, Disconnected

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ASK = Completion(prompt=[1], max_tokens=3)
CHAT = Chat(messages=[("user", "hi")], max_tokens=3)
TIMINGS = {"cache_n": 2, "prompt_n": 5, "prompt_ms": 1.5, "predicted_n": 3, "predicted_ms": 7.5}
END = {"content": "", "stop": True, "stop_type": "limit", "timings": TIMINGS}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def data(body: Any) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def whole(status: str, content: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(content), content)


def sends(*pieces: bytes, pause_seconds: float = 0.0) -> Handler:
    """A handler that takes the request, sends the pieces one by one, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return handle


def streams(*bodies: Any) -> Handler:
    return sends(HEAD, *(chunk(data(body)) for body in bodies), b"0\r\n\r\n")


class Server:
    """Serves one handler on a socket; `closed` counts the clients that hung up while they were served."""

    def __init__(self, folder: Path, handler: Handler):
        self.socket = folder / "s"
        self.requests: list[bytes] = []
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_unix_server(self._serve, str(self.socket), limit=1 << 22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await self._handler(reader, writer)
        finally:
            writer.close()


async def both(client: Client, request: Completion | Chat) -> list[Event]:
    """The events of a request; `stream` and `complete` must agree on them, times aside, also on an error."""
    streamed, completed = await asyncio.gather(read(client, request), finish(client, request), return_exceptions=True)
    if isinstance(streamed, BaseException):
        assert type(completed) is type(streamed)
        assert str(completed) == str(streamed)
        raise streamed
    assert not isinstance(completed, BaseException), completed
    assert [bare(event) for event in completed] == [bare(event) for event in streamed]
    return streamed


async def read(client: Client, request: Completion | Chat) -> list[Event]:
    return [event async for event in client.stream(request)]


async def finish(client: Client, request: Completion | Chat) -> list[Event]:
    events, finished = await client.complete(request)
    return [*events, finished]


def bare(event: Event) -> tuple[Any, ...]:
    match event:
        case Token():
            return ("token", event.text, event.reasoning)
        case PromptProgress():
            return ("progress", event.processed, event.total)
        case Finished():
            return ("finished", event.reason, event.timings)


def ask(
    folder: Path, handler: Handler, request: Completion | Chat = ASK, *, hang_seconds: float = 5.0
) -> list[tuple[Any, ...]]:
    async def talk() -> list[Event]:
        async with Server(folder, handler) as server:
            return await both(Client(server.socket, hang_seconds=hang_seconds), request)

    return [bare(event) for event in asyncio.run(talk())]


def call(folder: Path, handler: Handler, method: str, *arguments: Any) -> Any:
    async def talk() -> Any:
        async with Server(folder, handler) as server:
            return await getattr(Client(server.socket, hang_seconds=5), method)(*arguments)

    return asyncio.run(talk())


# -- answers that are right


def test_events_in_order_with_finished_last(tmp_path: Path) -> None:
    progress = {"content": "", "stop": False, "prompt_progress": {"total": 9, "cache": 0, "processed": 4}}
    handler = streams(progress, {"content": "a", "stop": False}, {"content": " b", "stop": False}, END)
    assert ask(tmp_path, handler) == [
        ("progress", 4, 9),
        ("token", "a", False),
        ("token", " b", False),
        ("finished", "length", Timings.parse(TIMINGS)),
    ]


def test_times_are_those_of_the_arrivals(tmp_path: Path) -> None:
    pieces = [HEAD, *(chunk(data({"content": text})) for text in "ab"), chunk(data(END)), b"0\r\n\r\n"]

    async def talk() -> tuple[int, list[Event], int]:
        async with Server(tmp_path, sends(*pieces, pause_seconds=0.03)) as server:
            before = time.monotonic_ns()
            events, finished = await Client(server.socket).complete(ASK)
            return before, [*events, finished], time.monotonic_ns()

    before, events, after = asyncio.run(talk())
    times = [before, *(event.at_ns for event in events), after]
    assert times == sorted(times)
    assert all(later - earlier > 20_000_000 for earlier, later in pairwise(times[1:]))


@pytest.mark.parametrize(
    ("stop_type", "reason"), [("limit", "length"), ("eos", "stop"), ("word", "stop"), ("none", "stop")]
)
def test_reasons_of_a_completion(tmp_path: Path, stop_type: str, reason: str) -> None:
    (finished,) = ask(tmp_path, streams({"content": "", "stop": True, "stop_type": stop_type}))
    assert finished == ("finished", reason, None)


def test_a_last_event_that_still_holds_text(tmp_path: Path) -> None:
    assert ask(tmp_path, streams(END | {"content": "z"}))[0] == ("token", "z", False)


def test_thinking_is_told_apart_in_a_chat(tmp_path: Path) -> None:
    def choice(delta: Any, reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    handler = sends(
        HEAD,
        chunk(data(choice({"role": "assistant", "content": None}))),
        chunk(data(choice({"reasoning_content": "hm"}))),
        chunk(data(choice({"reasoning_content": "!", "content": "Yes"}))),
        chunk(data(choice({}, "stop"))),
        chunk(data({"choices": [], "timings": TIMINGS})),
        chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    )
    assert ask(tmp_path, handler, CHAT) == [
        ("token", "hm", True),
        ("token", "!", True),
        ("token", "Yes", False),
        ("finished", "stop", Timings.parse(TIMINGS)),
    ]


def test_nulls_are_nothing(tmp_path: Path) -> None:
    assert ask(tmp_path, streams({"choices": None}, {"choices": [{"delta": None, "finish_reason": "stop"}]}), CHAT) == [
        ("finished", "stop", None)
    ]
    handler = streams({"content": None, "error": None}, {"content": "a", "timings": None}, END)
    texts = [event[1] for event in ask(tmp_path, handler) if event[0] == "token"]
    assert "".join(texts) == "a"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_lines_in_pieces_of_any_size(tmp_path: Path, size: int) -> None:
    """Also in the middle of a character of several bytes, with CRLF, comments and fields of no interest."""
    text = b": ping\r\n\r\nid: 7\r\nevent: message\r\n" + data({"content": "é🪨"}).replace(b"\n", b"\r\n")
    content = text + data({"content": "ж"}) + data(END)
    pieces = [chunk(content[at : at + size]) for at in range(0, len(content), size)]
    assert ask(tmp_path, sends(HEAD, *pieces, b"0\r\n\r\n"))[:2] == [("token", "é🪨", False), ("token", "ж", False)]


def test_the_head_may_come_byte_by_byte(tmp_path: Path) -> None:
    everything = HEAD + chunk(data({"content": "a"})) + chunk(data(END)) + b"0\r\n\r\n"
    handler = sends(*(everything[at : at + 1] for at in range(len(everything))))
    assert ask(tmp_path, handler)[0] == ("token", "a", False)


def test_a_huge_line(tmp_path: Path) -> None:
    text = "word " * 400_000
    assert ask(tmp_path, streams({"content": text}, END))[0] == ("token", text, False)


def test_no_length_and_no_chunks_but_the_end_of_the_connection(tmp_path: Path) -> None:
    handler = sends(b"HTTP/1.0 200 OK\r\n\r\n", data({"content": "a"}), data(END))
    assert [event[0] for event in ask(tmp_path, handler)] == ["token", "finished"]


def test_a_distribution_with_what_json_cannot_say(tmp_path: Path) -> None:
    top = [{"id": 4, "logprob": -0.5}, {"id": 9, "logprob": None}]
    reply = {"completion_probabilities": [{"top_logprobs": top}], "timings": TIMINGS}
    found = call(tmp_path, sends(whole("200 OK", json.dumps(reply).encode())), "distribution", ASK)
    assert found == ([Candidate(4, -0.5), Candidate(9, -math.inf)], Timings.parse(TIMINGS))


# -- what a request says


@pytest.mark.parametrize("request_", [ASK, CHAT])
def test_no_comments_are_asked_for_that_would_hide_a_hang(request_: Completion | Chat) -> None:
    assert request_.body(stream=True)["sse_ping_interval"] == -1


def test_the_request_as_it_arrives(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        seen.extend([head, await reader.readexactly(length)])
        writer.write(HEAD + chunk(data(END)) + b"0\r\n\r\n")

    async def talk() -> None:
        async with Server(tmp_path, handle) as server:
            await Client(server.socket).complete(Completion(prompt="Grüße", max_tokens=2, stop=("\n",), candidates=4))

    asyncio.run(talk())
    assert seen[0].startswith(b"POST /completion HTTP/1.1\r\n")
    body = json.loads(seen[1])
    assert (body["prompt"], body["n_predict"], body["stop"], body["n_probs"]) == ("Grüße", 2, ["\n"], 4)
    assert body["stream"] is True
    assert body["temperature"] == 0


# -- the engine says no


@pytest.mark.parametrize(
    ("status", "content", "code", "said"),
    [
        ("500 X", b'{"error": {"code": 500, "message": "no\\n  memory", "type": "server_error"}}', 500, "no memory"),
        ("400 X", b'{"error": {"code": "too_long", "message": "too long"}}', 400, "too long"),
        ("400 X", b'{"error": {"code": null, "message": "null code"}}', 400, "null code"),
        ("503 X", b'{"error": "plain words"}', 503, "plain words"),
        ("500 X", b"Internal Server Error", 500, "Internal Server Error"),
        ("502 X", b"<html>\n<b>\xff</b></html>", 502, "<html> <b>"),
        ("500 X", b"[1, 2]", 500, "[1, 2]"),
        ("500 X", b"", 500, "no reason given"),
        ("500 X", b'{"error": null}', 500, "None"),
    ],
)
def test_a_refusal_with_its_status(tmp_path: Path, status: str, content: bytes, code: int, said: str) -> None:
    for trial in (
        lambda: ask(tmp_path, sends(whole(status, content))),
        lambda: call_tokenize(tmp_path, status, content),
    ):
        with pytest.raises(EngineError, match=f"refused \\({code}\\)") as caught:
            trial()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.status == code
        assert caught.value.cause == "refused"


@pytest.mark.parametrize("content", [b'{"error": {"code": 404, "message": "File Not Found"}}', b""])
def test_a_route_that_an_engine_lacks_is_named(tmp_path: Path, content: bytes) -> None:
    """By its HTTP status: an error within a stream may have any code."""
    with pytest.raises(EngineError, match=r"^the engine has no /tokenize \(404\)") as caught:
        call_tokenize(tmp_path, "404 Not Found", content)
    assert (caught.value.status, caught.value.cause) == (404, "the engine has no /tokenize")
    with pytest.raises(EngineError, match="the engine has no /completion"):
        ask(tmp_path, sends(whole("404 Not Found", content)))


def test_an_answer_of_another_form_names_its_route(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="answer to /tokenize has another form") as caught:
        call_tokenize(tmp_path, "200 OK", b"{}")
    assert caught.value.cause == "bad answer to /tokenize"


def call_tokenize(folder: Path, status: str, content: bytes) -> Any:
    return call(folder, sends(whole(status, content)), "tokenize", "x")


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"error": {"code": 507, "message": "the cache is full"}}\n\n',
        b'error: {"code": 507, "message": "the cache is full"}\n\n',
        b'error: {"error": {"code": 507, "message": "the cache is full"}}\n\n',
    ],
)
def test_an_error_in_the_middle_of_a_stream(tmp_path: Path, line: bytes) -> None:
    handler = sends(HEAD, chunk(data({"content": "a"})), chunk(line), b"0\r\n\r\n")
    with pytest.raises(EngineError, match="the cache is full") as caught:
        ask(tmp_path, handler)
    assert caught.value.status == 507


@pytest.mark.parametrize(
    "line",
    [
        b"data: rubbish\n\n",
        b'data: {"content": \n\n',
        b"data: [1]\n\n",
        b"data: \xff\xfe\n\n",
        b'data: {"prompt_progress": {"processed": 1}}\n\n',
        b'data: {"timings": [1]}\n\n',
        b'data: {"timings": {"prompt_n": "many"}}\n\n',
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": ["x"]}\n\n',
    ],
)
def test_garbage_in_a_stream_is_the_engines_error(tmp_path: Path, line: bytes) -> None:
    for request in (ASK, CHAT):
        with pytest.raises(EngineError) as caught:
            ask(tmp_path, sends(HEAD, chunk(line), b"0\r\n\r\n"), request)
        assert caught.value.status == 502
        assert caught.value.cause.startswith("bad answer")
        if b"progress" in line:
            break  # a chat has none


@pytest.mark.parametrize(
    "content", [b"rubbish", b"", b"[]", b"{}", b'{"data": []}', b'{"tokens": [null]}', b'{"tokens": 1}']
)
def test_garbage_in_an_answer_is_the_engines_error(tmp_path: Path, content: bytes) -> None:
    handler = sends(whole("200 OK", content))
    for method, arguments in (("tokenize", ("x",)), ("vocabulary_size", ()), ("distribution", (ASK,))):
        with pytest.raises(EngineError) as caught:
            call(tmp_path, handler, method, *arguments)
        assert caught.value.status == 502
        assert caught.value.cause.startswith("bad answer")


# -- the connection breaks


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200"],
        [HEAD],
        [HEAD, chunk(data({"content": "a"}))],
        [HEAD, b"ff\r\ndata: {"],
        [HEAD, chunk(data({"content": "a"})), b"0\r\n\r\n"],
        [HEAD, chunk(data(END)[:-9]), b"0\r\n\r\n"],
        [HEAD, b"nonsense\r\n"],
        [b"SSH-2.0-OpenSSH_9.6\r\n"],
        [b"HTTP/1.1 500 X\r\nContent-Length: 50\r\n\r\nhalf of i"],
    ],
)
def test_a_connection_that_ends_early(tmp_path: Path, pieces: list[bytes]) -> None:
    with pytest.raises(Disconnected):
        ask(tmp_path, sends(*pieces))


def test_nobody_listens(tmp_path: Path) -> None:
    absent = Client(tmp_path / "s")
    for request in (absent.complete(ASK), absent.tokenize("x"), read(absent, ASK)):
        with pytest.raises(Disconnected):
            asyncio.run(request)
    assert asyncio.run(absent.ready()) is False


def test_a_socket_file_that_nobody_serves_any_more(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with pytest.raises(Disconnected, match="refused"):
        asyncio.run(Client(tmp_path / "s").complete(ASK))


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (whole("200 OK", b'{"status": "ok"}'), True),
        (whole("503 X", b'{"error": {"code": 503, "message": "Loading model"}}'), False),
        (whole("200 OK", b"rubbish"), False),
        (b"", False),
    ],
)
def test_ready(tmp_path: Path, answer: bytes, ready: bool) -> None:
    assert call(tmp_path, sends(answer), "ready") is ready


# -- silence


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(30)


def hung(folder: Path, handler: Handler, request: Completion | Chat, *, after: tuple[float, float]) -> None:
    """Both ways of asking end in Hung, within the stated seconds, and say how long nothing came."""

    async def talk() -> None:
        async with Server(folder, handler) as server:
            client = Client(server.socket, hang_seconds=0.3)
            began = time.monotonic()
            with pytest.raises(EngineTimeout, match=r"no response for 0\.\d+ s"):
                await both(client, request)
            assert after[0] <= time.monotonic() - began < after[1]

    asyncio.run(talk())


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_silence_is_a_hang(tmp_path: Path, begin: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await silent(reader, writer)

    hung(tmp_path, handle, Completion(prompt=[], max_tokens=1), after=(0.3, 60))


def test_silence_after_a_token_is_a_hang_however_long_the_prompt_was(tmp_path: Path) -> None:
    """The prompt's length buys time for its evaluation, and for nothing after that."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(data({"content": "a"})))
        await silent(reader, writer)

    hung(tmp_path, handle, Completion(prompt=[1] * 100, max_tokens=3), after=(0.3, 60))


def test_a_long_prompt_is_no_hang_when_the_head_came_at_once(tmp_path: Path) -> None:
    """llama-server sends the head before it evaluates the prompt."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await asyncio.sleep(0.6)
        writer.write(chunk(data(END)) + b"0\r\n\r\n")

    assert ask(tmp_path, handle, Completion(prompt="0123456789", max_tokens=3), hang_seconds=0.2)


def test_a_long_message_buys_time_too() -> None:
    short, long = (Client(Path("s"))._allowance(Chat(messages=[("user", "x" * n)], max_tokens=1)) for n in (1, 9001))
    assert long - short == pytest.approx(4500)


@pytest.mark.slow
def test_slow_but_steady_is_no_hang(tmp_path: Path) -> None:
    pieces = [HEAD, *(chunk(data({"content": text})) for text in "abcdef"), chunk(data(END)), b"0\r\n\r\n"]
    handler = sends(*pieces, pause_seconds=0.3)
    assert len(ask(tmp_path, handler, Completion(prompt=[], max_tokens=6), hang_seconds=2.0)) == 7


def test_a_call_that_is_never_answered(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Server(tmp_path, silent) as server:
            client = Client(server.socket, hang_seconds=0.2)
            with pytest.raises(EngineTimeout, match=r"no response for 0\.2 s"):
                await client.tokenize("x")
            assert await client.ready() is False

    asyncio.run(talk())


# -- cancelling


class Watched:
    """Streams tokens for ever, and knows when the client hung up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(data({"content": "a"})))
        self.begun.set()
        while await reader.read(1 << 16):
            pass
        self.hung_up.set()


def test_closing_the_stream_closes_the_connection(tmp_path: Path) -> None:
    async def talk() -> None:
        watched = Watched()
        async with Server(tmp_path, watched) as server:
            events = Client(server.socket).stream(ASK)
            assert bare(await anext(events)) == ("token", "a", False)
            assert not watched.hung_up.is_set()
            await events.aclose()
            await asyncio.wait_for(watched.hung_up.wait(), 60)

    asyncio.run(talk())


@pytest.mark.parametrize("how", [read, finish])
def test_cancelling_the_task_closes_the_connection(tmp_path: Path, how: Callable[..., Awaitable[Any]]) -> None:
    async def talk() -> None:
        watched = Watched()
        async with Server(tmp_path, watched) as server:
            task = asyncio.ensure_future(how(Client(server.socket), ASK))
            await asyncio.wait_for(watched.begun.wait(), 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(watched.hung_up.wait(), 60)

    asyncio.run(talk())


def test_a_reader_that_loses_patience_is_not_called_a_hang(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Server(tmp_path, Watched()) as server:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await read(Client(server.socket), ASK)

    asyncio.run(talk())


def test_a_refusal_closes_the_connection_too(tmp_path: Path) -> None:
    hung_up = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(b"data: rubbish\n\n"))
        while await reader.read(1 << 16):
            pass
        hung_up.set()

    async def talk() -> None:
        async with Server(tmp_path, handle) as server:
            with pytest.raises(EngineError):
                await read(Client(server.socket), ASK)
            await asyncio.wait_for(hung_up.wait(), 60)

    asyncio.run(talk())


def routed(answers: dict[bytes, Handler]) -> Handler:
    """By the path of the request."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n")).split()[1]
        await answers[path](reader, writer)

    return handle


def test_timings_without_a_stream(tmp_path: Path) -> None:
    reply = {"content": "a", "stop": True, "stop_type": "limit", "timings": {"predicted_n": 3, "predicted_ms": 2.0}}
    handler = routed({b"/completion": sends(whole("200 OK", json.dumps(reply).encode()))})
    found = call(tmp_path, handler, "timed", Completion(prompt=[1], max_tokens=3))
    assert (found.reason, found.timings.predicted_n, found.timings.predicted_ms) == ("length", 3, 2.0)


def test_an_answer_without_timings_is_the_engines_error(tmp_path: Path) -> None:
    handler = routed({b"/completion": sends(whole("200 OK", b'{"stop": true}'))})
    with pytest.raises(EngineError, match="another form"):
        call(tmp_path, handler, "timed", Completion(prompt=[1], max_tokens=3))


def test_a_prompt_in_long_batches_is_no_hang(tmp_path: Path) -> None:
    """Two batches were short and the third takes far longer than any silence while decoding."""
    looks = 0

    async def slots(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.write(whole("200 OK", b'[{"n_prompt_tokens_processed": %d, "n_decoded": 0}]' % min(looks, 3)))
        writer.close()

    reply = {"content": "a", "stop": True, "stop_type": "limit", "timings": {"predicted_n": 3, "predicted_ms": 2.0}}
    late = sends(b"", whole("200 OK", json.dumps(reply).encode()), pause_seconds=1.0)

    async def talk() -> str:
        async with Server(tmp_path, routed({b"/completion": late, b"/slots": slots})) as server:
            client = Client(server.socket, hang_seconds=0.2)
            return (await client.timed(Completion(prompt=[1] * 9, max_tokens=3))).reason

    assert asyncio.run(talk()) == "length"
    assert looks >= 3


async def computing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """No answer, but CPU time of this process."""
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    await silent(reader, writer)


@pytest.mark.parametrize("call_name", ["timed", "distribution"])
def test_a_device_that_is_slow_computes_and_one_that_hangs_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_name: str
) -> None:
    """Twice the time that a prompt may take at most passes without a sign: shaders are compiled, for example."""
    # On a busy machine neither computes much.
    monkeypatch.setattr("trilithon.runtime.client._BUSY", 0.0001)
    monkeypatch.setattr("trilithon.runtime.client._BUSY_FACTOR", 1000.0)
    reply = {**END, "completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": 0.0}]}]}
    late = sends(b"", whole("200 OK", json.dumps(reply).encode()), pause_seconds=1.2)

    async def talk(pid: int) -> None:
        async with Server(tmp_path, routed({b"/completion": late, b"/slots": computing})) as server:
            client = Client(server.socket, hang_seconds=0.1)
            client.endpoint.pid = pid
            await getattr(client, call_name)(Completion(prompt=[1], max_tokens=1))

    asyncio.run(talk(os.getpid()))
    sleeps = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(sleeps, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline()
            with pytest.raises(EngineTimeout, match=r"no response for 0\.6 s"):
                asyncio.run(talk(child.pid))
        finally:
            child.kill()


@pytest.mark.slow
def test_a_timed_request_lives_while_its_slot_moves_and_hangs_when_it_stands_still(tmp_path: Path) -> None:
    looks = 0

    async def slots(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.write(whole("200 OK", b'[{"n_decoded": %d}]' % min(looks, 12)))
        writer.close()

    async def talk() -> float:
        async with Server(tmp_path, routed({b"/completion": silent, b"/slots": slots})) as server:
            client = Client(server.socket, hang_seconds=0.4)
            begun = time.monotonic()
            with pytest.raises(EngineTimeout, match=r"no response for 0\.4 s"):
                await client.timed(Completion(prompt=[], max_tokens=3))
            return time.monotonic() - begun

    assert asyncio.run(talk()) > 1.2  # twelve looks, a tenth of a second apart, and then four tenths of nothing
    assert looks >= 12

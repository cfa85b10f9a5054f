"""Streams that wait: for a slot, for a model to be loaded, for their prompt. In every dialect, and before its clients.

The server's times are shortened; the engine is scripted, has one slot, and takes a second to load."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from litellm_program import said_by
from live_server import Serve, Server

from trilithon.serve.app import ServeOptions
from trilithon.serve.http.keep_alive import BLANK, COMMENT, PING, StreamTimes

SHORT = ServeOptions(stream_times=StreamTimes(open_after_seconds=0.02, silent_seconds=0.05))
TEXT = "A trilithon"
SAID: Any = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"messages": SAID, "max_tokens": 4}
OLLAMAS: dict[str, Any] = {"options": {"num_predict": 4}}
# Path, body, keep-alive, the end of a whole answer, the beginning of an error.
Route = tuple[str, dict[str, Any], bytes, str, str]
ROUTES: list[Route] = [
    ("/v1/chat/completions", CHAT, COMMENT, "data: [DONE]\n\n", 'data: {"error":{"message":"the engine'),
    ("/v1/chat/completions", CHAT | {"n": 2}, COMMENT, "data: [DONE]\n\n", 'data: {"error":{"message":"the engine'),
    ("/v1/completions", {"prompt": "x", "n": 2}, COMMENT, "data: [DONE]\n\n", 'data: {"error":{"message":"the engine'),
    ("/v1/responses", {"input": "x"}, COMMENT, "}}\n\n", 'event: response.created\ndata: {"type":"response.created"'),
    ("/completion", {"prompt": "x", "n_predict": 4}, COMMENT, "}\n\n", 'data: {"error":{"message":"the engine'),
    ("/v1/messages", CHAT, PING, '{"type":"message_stop"}\n\n', 'event: error\ndata: {"type":"error"'),
    ("/api/chat", {"messages": SAID} | OLLAMAS, BLANK, "}\n", '{"error":"the engine'),
    ("/api/generate", {"prompt": "x"} | OLLAMAS, BLANK, "}\n", '{"error":"the engine'),
]


async def answers(server: Server, routes: list[Route], opened: list[asyncio.Event]) -> list[str]:
    """All asked at once. Each event is set once the stream is open, has been silent for a while, and says nothing."""

    async def answer(route: Route, event: asyncio.Event) -> str:
        path, body, keep_alive, *_ = route
        content = b""
        async with client.stream("POST", path, json={"model": "tiny", "stream": True, "user": "me", **body}) as stream:
            async for piece in stream.aiter_raw():
                content += piece
                if content.startswith(keep_alive * 3):
                    event.set()
        assert stream.status_code == 200
        return content.decode()

    async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
        return await asyncio.gather(*map(answer, routes, opened))


def test_every_stream_is_open_while_it_waits_for_a_slot(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=5000,decode=50", options=SHORT)

    async def scenario() -> list[str]:
        opened = [asyncio.Event() for _ in ROUTES]
        body = {"model": "tiny", "prompt": "x", "max_tokens": 4000, "stream": True}
        async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
            async with client.stream("POST", "/v1/completions", json=body) as holder:  # and reads nothing
                pieces = holder.aiter_raw()
                while b"data" not in await anext(pieces):
                    pass
                waiting = asyncio.create_task(answers(server, ROUTES, opened))
                await asyncio.gather(*(event.wait() for event in opened))
                assert not waiting.done()
            return await waiting

    for (path, _, keep_alive, end, _), content in zip(ROUTES, asyncio.run(scenario()), strict=True):
        assert content.endswith(end), path
        assert content.startswith(keep_alive.decode() * 3)


def test_a_whole_answer_waits_without_a_byte(serve: Serve, tiny: Path) -> None:
    """Its status is not known before it is there."""
    server = serve(tiny, placement="scripted/cpu:load=1,refuse_requests=not today", options=SHORT)
    for path, body, *_ in ROUTES:
        answer = server.http.post(path, json={"model": "tiny", "stream": False, **body})
        assert answer.status_code == 500
        assert "not today" in answer.text and answer.text.startswith("{")


def test_what_is_refused_before_it_waits_has_its_own_status(serve: Serve, tiny: Path) -> None:
    """And what waits, the headers of its answer."""
    times = StreamTimes(open_after_seconds=0.005, silent_seconds=60.0)
    server = serve(tiny, placement="scripted/cpu:load=1,decode=5000", options=ServeOptions(stream_times=times))
    for path, body, *_ in ROUTES:
        answer = server.http.post(path, json={"model": "nobody", "stream": True, **body})
        assert answer.status_code == 404, path
    asked = {"model": "tiny", "stream": True, "user": "me", **CHAT}
    answer = server.http.post("/v1/chat/completions", json=asked)
    assert answer.content.startswith(COMMENT + b"data: ")
    assert answer.headers["x-trilithon-placement"].startswith("scripted/cpu")
    assert answer.headers["x-trilithon-ignored"] == "user"


def openais(server: Server) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(model="tiny", stream=True, **CHAT)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def openais_responses(server: Server) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        events = client.responses.create(model="tiny", input="hello", max_output_tokens=16, stream=True)
        said = ""
        for event in events:
            if event.type == "response.failed":
                raise openai.OpenAIError(event.response.error)
            said += event.delta if event.type == "response.output_text.delta" else ""
        return said


def anthropics(server: Server) -> str:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        client.messages.stream(model="tiny", **CHAT) as stream,
    ):
        return stream.get_final_text()


def ollamas_chat(server: Server) -> str:
    with ollama.Client(server.url) as client:
        return "".join(part.message.content or "" for part in client.chat("tiny", SAID, stream=True, **OLLAMAS))


def ollamas_generate(server: Server) -> str:
    async def said() -> str:
        async with ollama.AsyncClient(server.url) as client:
            return "".join([part.response async for part in await client.generate("tiny", "x", stream=True, **OLLAMAS)])

    return asyncio.run(said())


def ollamas_load(server: Server) -> str:
    with ollama.Client(server.url) as client:
        (part,) = client.generate("tiny", "", stream=True)
        assert part.done_reason == "load"
    return TEXT


CLIENTS: list[tuple[Callable[[Server], str], type[Exception]]] = [
    (openais, openai.APIError),
    (openais_responses, openai.OpenAIError),
    (anthropics, anthropic.APIStatusError),
    (ollamas_chat, ollama.ResponseError),
    (ollamas_generate, ollama.ResponseError),
]


async def together(clients: list[Callable[[Server], str]], server: Server) -> list[str | BaseException]:
    said = (asyncio.to_thread(client, server) for client in clients)
    return await asyncio.gather(*said, return_exceptions=True)


def test_clients_wait_for_the_load_and_the_prompt(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:load=1,prefill=100,decode=5000", options=SHORT)
    clients = [client for client, _ in CLIENTS] + [ollamas_load]
    for client, said in zip(clients, asyncio.run(together(clients, server)), strict=True):
        assert not isinstance(said, BaseException), (client, said)
        assert said.startswith(TEXT)


def test_an_error_after_the_head_is_the_dialects_event(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:load=1,refuse_requests=not today", options=SHORT)

    async def scenario() -> tuple[list[str], list[str | BaseException]]:
        opened = [asyncio.Event() for _ in ROUTES]
        return await asyncio.gather(
            answers(server, ROUTES, opened), together([client for client, _ in CLIENTS], server)
        )

    contents, raised = asyncio.run(scenario())
    for (path, _, keep_alive, _, error), content in zip(ROUTES, contents, strict=True):
        told = content.replace(keep_alive.decode(), "") if keep_alive != BLANK else content.lstrip()
        assert told.startswith(error), path
        assert "not today" in told
    for (client, kind), problem in zip(CLIENTS, raised, strict=True):
        assert isinstance(problem, kind), (client, problem)
        assert "not today" in str(problem)
    failed = [json.loads(line[6:]) for line in contents[3].splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in failed] == ["response.created", "response.in_progress", "response.failed"]
    assert 'route="/v1/messages",status="500"' in server.http.get("/metrics").text


LITELLM = """
import json, sys
import litellm

base = sys.argv[1]
found = []
user = [{"role": "user", "content": "hello"}]
for model, path in (("openai/tiny", "/v1"), ("anthropic/tiny", ""), ("ollama_chat/tiny", ""), ("ollama/tiny", "")):
    asked = dict(model=model, api_base=base + path, api_key="none", messages=user, max_tokens=4, stream=True)
    found.append("".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked)))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_litellm_waits_too(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement="scripted/cpu:prefill=20,decode=5000", options=SHORT)
    assert said_by(LITELLM, server.url) == [TEXT] * 4

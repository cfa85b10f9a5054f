"""Bodies of JSON: whatever they are called, bounded in values and depth, and the same value however they are read."""

import asyncio
import http.client
import json
import random
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from live_server import Serve, Server

from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.http import json_bodies
from trilithon.serve.http.errors import ApiError
from trilithon.serve.http.json_bodies import JsonRoute, read_json

DEEP = '{"properties":{"a":' * 400 + "{}" + "}}" * 400
NESTED = "[" * 900 + "]" * 900
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    return serve(write_tiny_model(tmp_path / "tiny.gguf", seed=1))


def posted(server: Server, path: str, body: bytes | str, content_type: str = "application/json") -> Any:
    headers = {"Content-Type": content_type} if content_type else {}
    return server.http.post(path, content=body, headers=headers)


def test_a_long_body_is_read_as_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_SMALL_BYTES", 10), ("_LONG_BYTES", 100), ("_WINDOW_BYTES", 32)):
        monkeypatch.setattr(json_bodies, name, size)
    letters, chance = [*'a"\\/\nué8d,:[{', "\u20ac", "\U0001f600", "\x7f"], random.Random(1)
    texts = ["".join(chance.choices(letters, k=chance.randint(0, 300))) for _ in range(300)]
    for text in [*texts, *(letter * 150 for letter in letters)]:
        value = {"x": text, "list": [text, {"y": text, "n": 1.5, "z": None}], 'k"\\': []}
        for content in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(text)):
            for spelled in (content, content.replace("/", "\\/")):
                assert read_json(spelled.encode()) == json.loads(spelled)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"[" + b"[]," * 50_000 + b"[]]", 413, "50000 lists and objects"),
        (b"[" + b"[]," * (20 << 20), 413, "300000 values"),
        (b"[" + b"1," * 300_000 + b"1]", 413, "300000 values"),
        (b"[" + b'"",' * 300_001 + b"1]", 413, "300000 values"),
        (json.dumps(dict.fromkeys(map(str, range(1001)))).encode(), 413, "1000 fields"),
        (b'{"a":"' + b"a" * (29 << 20) + b'"}', 413, "over 28 MiB"),
        (b'{"a":"' + b'\\"' * (1 << 20) + b'"}', 413, "quotation marks"),
        (b"[" * 45_000, 400, "too deep"),
        (b'{"x":' * 200 + b"1" + b"}" * 200, 400, "nested deeper"),
        (b'{"' + b"a" * 70_000 + b'" :1}', 400, "name in the body is over 64 KiB"),
        (b'{"a":"' + b"a" * 70_000 + b'",}', 400, "not JSON"),
        (b'{"a":"' + b"a" * 70_000, 400, "not JSON"),
        (b'{"a":"' + b"\xff" * 70_000 + b'"}', 400, "not UTF-8"),
        (b'{"a":' + b"1" * 5000 + b"}", 400, "not JSON"),
        (b'{"a":NaN}', 400, "infinite or NaN"),
        (b'{"a":"\\ud800"}', 400, "surrogate"),
        (b'{"a":"' + b"\\ud800" * 20_000 + b'"}', 400, "surrogate"),
    ],
)
def test_what_is_too_much_or_no_json(content: bytes, status: int, words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        read_json(content)
    assert raised.value.status == status


def test_prose_of_commas_and_braces_is_one_value() -> None:
    text = '{"a": [1, 2]}, ' * 200_000
    assert read_json(json.dumps([text, text[:2000]]).encode()) == [text, text[:2000]]


def test_json_is_read_whatever_it_is_called(server: Server) -> None:
    kinds = ["", "application/json; charset=utf-8", "Application/X-WWW-Form-Urlencoded; charset=UTF-8", "text/plain"]
    kinds += ["application/octet-stream", "application/x-ndjson", "multipart/form-data; boundary=x", "nonsense"]
    body = json.dumps({"model": server.model})
    assert {kind: posted(server, "/api/show", body, kind).status_code for kind in kinds} == dict.fromkeys(kinds, 200)


def test_depth_is_the_clients_fault_on_every_route(server: Server) -> None:
    bodies = {
        "/api/chat": f'{{"model":"tiny","stream":false,{MESSAGES},"format":{DEEP}}}',
        "/api/show": f'{{"model":"tiny","x":{NESTED}}}',
        "/v1/chat/completions": f'{{"model":"tiny",{MESSAGES},"response_format":{{"json_schema":{DEEP}}}}}',
        "/v1/messages": f'{{"model":"tiny","max_tokens":3,{MESSAGES},"tools":[{{"input_schema":{DEEP}}}]}}',
        "/v1/responses": f'{{"model":"tiny","input":"hi","tools":[{{"parameters":{DEEP}}}]}}',
        "/completion": f'{{"prompt":"hi","n_predict":2,"json_schema":{DEEP}}}',
        "/tokenize": f'{{"content":{NESTED}}}',
        "/v1/embeddings": f'{{"model":"tiny","input":{NESTED}}}',
        "/v1/rerank": f'{{"model":"tiny","query":"x","documents":{NESTED}}}',
    }
    for path, body in bodies.items():
        answer = posted(server, path, body)
        assert (path, answer.status_code, "deep" in answer.text) == (path, 400, True)


def test_a_broken_body_is_told_with_its_place(server: Server) -> None:
    answer = posted(server, "/v1/chat/completions", '{"model": }')
    assert answer.status_code == 400
    assert "the body is not JSON: Expecting value at character 10" in answer.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lists", "picture", "text"])
def test_others_are_answered_meanwhile(server: Server, kind: str) -> None:
    """A second is generous: before there were bounds, others waited for 4 to 7 s."""
    filling = "/9j/" + "/" * (20 << 20)  # a JPEG whose marker never comes
    content: dict[str, list[Any]] = {"picture": [{"role": "user", "content": "hi", "images": [filling]}]}
    body = json.dumps({"model": server.model, "stream": False, "messages": content.get(kind, [])}).encode()[:-1]
    body += {"lists": b',"x":[' + b"[]," * (20 << 20) + b"[]]}", "picture": b"}"}.get(
        kind, b',"x":"' + b"\\\\ " * (18 << 20) + b'"}'
    )
    statuses: list[int] = []
    senders = [threading.Thread(target=lambda: statuses.append(_sent(server, body))) for _ in range(3)]
    for sender in senders:
        sender.start()
    longest = 0.0
    while any(sender.is_alive() for sender in senders):
        began = time.monotonic()
        assert server.http.get("/health").status_code == 200
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    assert len(statuses) == 3
    assert set(statuses) <= {200, 400, 413}
    assert longest < 1.0


def _sent(server: Server, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.http.base_url.port, timeout=120)
    connection.request("POST", "/api/chat", body, {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error() -> None:
    router = APIRouter(route_class=JsonRoute)

    @router.post("/")
    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        return body

    app, sent = FastAPI(), list[Any]()
    app.include_router(router)
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 400

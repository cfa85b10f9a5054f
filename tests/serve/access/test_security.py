"""The door on a real socket: a small ASGI application behind it, and clients that behave and others that do not."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from small_server import CHAT, Door, application, at_the_door
from starlette.datastructures import Headers

from trilithon.errors import UserError
from trilithon.serve.access.keys import Keyring, add_key, key_store, remove_key
from trilithon.serve.access.security import AccessRules, Guard, SecurityOptions, install, keyring, require_safe_bind
from trilithon.serve.access.sessions import COOKIE, Sessions, token_in
from trilithon.settings import Configuration

SECRET = "a-plain-key-of-many-letters"
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


# -- keys


def test_every_way_to_show_a_key(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        for headers in (BEARER, {"authorization": f"bearer  {SECRET}"}, {"X-Api-Key": SECRET}):
            answer = await door.http.get(CHAT, headers=headers)
            assert (answer.status_code, answer.json()["key"]) == (200, "file-1")
        both = [("x-api-key", "made-up"), ("authorization", f"Bearer {SECRET}")]
        assert (await door.http.get(CHAT, headers=both)).status_code == 200

    at_the_door(SecurityOptions(api_key_file=key_file), visit)


def test_a_gateway_alone_says_who_its_client_is(tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)
    secrets = {scope: add_key(configuration, f"of-{scope}", scope) for scope in ("gateway", "chat", "admin")}

    async def visit(door: Door) -> None:
        async def name(scope: str, client: str) -> str:
            headers = {"x-api-key": secrets[scope], "X-Trilithon-Client": client}
            return str((await door.http.get(CHAT, headers=headers)).json()["key"])

        assert await name("gateway", "ann") == "of-gateway/ann"
        for strange in ("", "a b", "ann/bob", "x" * 65, "-"):
            assert await name("gateway", strange) == "of-gateway"
        assert await name("chat", "ann") == "of-chat"
        assert await name("admin", "ann") == "of-admin"

    at_the_door(SecurityOptions(key_store=key_store(configuration)), visit)


def test_each_client_of_a_gateway_has_a_rate_of_its_own(tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)
    secret = add_key(configuration, "gateway-pc", "gateway")

    async def visit(door: Door) -> None:
        statuses = []
        for client in ("ann", "ann", "bob", "ann"):
            headers = {"x-api-key": secret, "X-Trilithon-Client": client}
            statuses.append((await door.http.get(CHAT, headers=headers)).status_code)
        assert statuses == [200, 200, 200, 429]

    options = SecurityOptions(key_store=key_store(configuration), requests_per_minute=2)
    at_the_door(options, visit)


NO_KEYS: list[dict[str, str]] = [
    {},
    {"Authorization": SECRET},
    {"Authorization": f"Basic {SECRET}"},
    {"Authorization": "Bearer"},
    {"Authorization": f"Bearer {SECRET}x"},
    {"Authorization": f"Bearer {SECRET[:-1]}"},
    {"x-api-key": ""},
    {"Cookie": f"key={SECRET}"},
]


def test_without_the_key_nothing_is_answered(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        for headers in NO_KEYS:
            await knock(door, headers)

    async def knock(door: Door, headers: dict[str, str]) -> None:
        for method, path in (("GET", CHAT), ("POST", "/"), ("POST", "/health"), ("GET", "/metrics"), ("GET", "//")):
            answer = await door.http.request(method, f"http://127.0.0.1:{door.port}{path}", headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert SECRET not in answer.text
        assert (await door.http.get(CHAT, params={"key": SECRET}, headers=headers)).status_code == 401

    at_the_door(SecurityOptions(api_key_file=key_file), visit)


def test_a_refusal_has_the_form_of_its_dialect(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        assert isinstance((await door.http.post("/api/chat", json={})).json()["error"], str)
        openai = (await door.http.post(CHAT, json={})).json()["error"]
        assert openai["type"] == "authentication_error"
        assert "key is required" in openai["message"]
        anthropic = (await door.http.post("/v1/messages", json={}, headers={"x-api-key": "made-up"})).json()
        assert anthropic["type"] == "error"
        assert anthropic["error"] == {"type": "authentication_error", "message": "invalid API key"}

    at_the_door(SecurityOptions(api_key_file=key_file), visit)


def test_what_is_public_says_nothing_and_asks_nothing(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        for method, path in (("GET", "/health"), ("HEAD", "/health"), ("GET", "/"), ("HEAD", "/")):
            assert (await door.http.request(method, path)).status_code == 200

    at_the_door(SecurityOptions(api_key_file=key_file), visit)


def test_keys_come_and_go_while_the_server_runs(tmp_path: Path) -> None:
    own = Configuration(data=tmp_path, cache=tmp_path)

    async def visit(door: Door) -> None:
        assert (await door.http.get(CHAT)).status_code == 200
        secret = add_key(own, "home")
        assert (await door.http.get(CHAT)).status_code == 401
        answer = await door.http.get(CHAT, headers={"x-api-key": secret})
        assert answer.json()["key"] == "home"
        remove_key(own, "home")
        assert (await door.http.get(CHAT, headers={"x-api-key": secret})).status_code == 401

    at_the_door(SecurityOptions(key_store=key_store(own)), visit)


def test_a_made_up_key_does_not_matter_where_none_is_asked_for(tmp_path: Path) -> None:
    async def visit(door: Door) -> None:
        answer = await door.http.get(CHAT, headers={"x-api-key": "ollama"})
        assert (answer.status_code, answer.json()["key"]) == (200, "")

    at_the_door(SecurityOptions(key_store=tmp_path / "keys.json"), visit)


# -- where the server may be reached


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "/run/trilithon.sock"])
def test_loopback_needs_no_key(host: str) -> None:
    require_safe_bind(host, Keyring(), False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "rock5.local"])
def test_other_machines_need_one(host: str, key_file: Path) -> None:
    with pytest.raises(UserError, match="trilithon key add NAME"):
        require_safe_bind(host, Keyring(), False)
    with pytest.raises(UserError, match="--no-key"):  # there is one, and it is not asked for
        require_safe_bind(host, Keyring(plain=key_file, required=False), False)
    with pytest.raises(UserError, match="--no-key"):  # asked for, but there is none
        require_safe_bind(host, Keyring(required=True), False)
    require_safe_bind(host, Keyring(), True)
    require_safe_bind(host, keyring(SecurityOptions(api_key_file=key_file)), False)


# -- pages of strangers


def test_a_page_whose_name_was_made_to_point_here_gets_nothing() -> None:
    async def visit(door: Door) -> None:
        for path in (CHAT, "/", "/health"):
            answer = await door.http.get(path, headers={"Host": "evil.example"})
            assert answer.status_code == 403
            assert "--host-name" in answer.text
        for name in (f"localhost:{door.port}", f"{socket.gethostname().partition('.')[0]}.local", "npu.lan"):
            assert (await door.http.get(CHAT, headers={"Host": name})).status_code == 200

    at_the_door(SecurityOptions(host_names=("npu.lan",)), visit)


def test_a_web_socket_passes_the_same_door(key_file: Path) -> None:
    """Driven without a server: uvicorn alone has no web sockets."""

    async def knock(headers: dict[str, str]) -> list[Any]:
        seen: list[Any] = []

        async def reached(scope: Any, receive: Any, send: Any) -> None:
            seen.append("reached")

        async def send(message: Any) -> None:
            seen.append((message["type"], message["code"]))

        async def receive() -> Any:
            raise AssertionError

        guard = Guard(reached, rules=AccessRules(SecurityOptions()), keys=Keyring(plain=key_file))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await guard({"type": "websocket", "path": "/live", "headers": raw, "server": None}, receive, send)
        return seen

    closed = [("websocket.close", 1008)]
    assert asyncio.run(knock({"Host": "localhost"} | BEARER)) == ["reached"]
    assert asyncio.run(knock({"Host": "localhost"})) == closed
    assert asyncio.run(knock({"Host": "evil.example"} | BEARER)) == closed
    assert asyncio.run(knock({"Host": "!"} | BEARER)) == closed
    assert asyncio.run(knock({"Host": "localhost", "Origin": "https://evil.example"} | BEARER)) == closed


def test_odd_host_headers_are_turned_away() -> None:
    async def visit(door: Door) -> None:
        for head in (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
            b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            answer = await door.raw(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert answer.startswith(b"HTTP/1.1 400 "), answer
        old = await door.raw(b"GET /health HTTP/1.0\r\n\r\n")  # no browser
        assert old.startswith(b"HTTP/1.1 200 ")

    at_the_door(SecurityOptions(), visit)


def test_apps_of_this_machine_may_use_the_api_and_not_the_pages() -> None:
    apps = ["http://localhost:3000", "http://127.0.0.1:5173", "https://localhost", "app://obsidian.md"]
    apps += ["tauri://localhost", "vscode-webview://abc", "vscode-file://vscode-app", "file://"]
    others = ["http://localhost.evil.example", "http://evil.example:3000", "null", "http://192.168.1.7"]

    async def visit(door: Door) -> None:
        asked = {"Access-Control-Request-Method": "POST"}
        door.app.state.sessions.is_pages = lambda scope: scope["path"] == "/careless"
        for origin in (*apps, *others):
            statuses = [
                (await door.http.options(path, headers={"Origin": origin} | asked)).status_code
                for path in ("/api/chat", "/careless")
            ]
            assert statuses == [204 if origin in apps else 403, 403], origin

    at_the_door(SecurityOptions(), visit)


LOCAL_PAGE = {"Origin": "http://localhost:3000"}


def test_apps_of_this_machine_need_a_server_without_keys(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        refused = await door.http.post(CHAT, json={}, headers=LOCAL_PAGE | BEARER)
        assert refused.status_code == 403
        assert "--cors http://localhost:3000" in refused.text
        own = {"Origin": f"http://127.0.0.1:{door.port}"}
        assert (await door.http.post(CHAT, json={}, headers=own | BEARER)).status_code == 200

    at_the_door(SecurityOptions(api_key_file=key_file), visit)


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_apps_of_another_machine_are_not_let_in_by_a_proxy(name: str) -> None:
    async def visit(door: Door) -> None:
        assert (await door.http.post(CHAT, json={}, headers=LOCAL_PAGE)).status_code == 200
        assert (await door.http.post(CHAT, json={}, headers=LOCAL_PAGE | {name: "192.168.1.9"})).status_code == 403

    at_the_door(SecurityOptions(), visit)


def test_a_changed_host_header_is_told_from_a_strangers_page() -> None:
    async def visit(door: Door) -> None:
        page = {"Origin": "https://ai.example", "Sec-Fetch-Site": "same-origin"}
        answer = await door.http.post(CHAT, json={}, headers=page)
        assert answer.status_code == 403
        assert "proxy_set_header Host $http_host;" in answer.text
        answer = await door.http.post(CHAT, json={}, headers=page | {"Sec-Fetch-Site": "cross-site"})
        assert "--cors https://ai.example" in answer.text

    at_the_door(SecurityOptions(), visit)


@pytest.mark.parametrize(
    "others",
    ["", 'prefs={"a":1}; ', "a[b]=1; ", "ключ=1; ", "=; ", "x; ", 'q="a;b"; ', "a=1,b=2; ", "sp ace=1; ", "a/b=c@d; "],
)
def test_a_browser_is_known_beside_any_other_cookie(others: str, key_file: Path) -> None:
    keys = Keyring(plain=key_file)
    sessions = Sessions(keys)
    token = sessions.open(BEARER["Authorization"].removeprefix("Bearer "))
    for cookie in (f"{others}{COOKIE}={token}", f"{COOKIE}={token}; {others}"):
        raw = [(b"cookie", cookie.encode())]
        assert token_in(Headers(raw=raw)) == token
    assert token_in(Headers(raw=[(b"cookie", others.encode()), (b"cookie", f"{COOKIE}={token}".encode())])) == token


def test_a_foreign_page_cannot_even_send_a_simple_post() -> None:
    async def visit(door: Door) -> None:
        page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        answer = await door.http.post("/api/chat", content=b"{}", headers=page)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answer = await door.http.options("/api/chat", headers=asked)
        assert answer.status_code == 403
        assert "access-control-allow-methods" not in answer.headers
        own = {"Origin": f"http://127.0.0.1:{door.port}"}
        assert (await door.http.post("/api/chat", content=b"{}", headers=own)).status_code == 200

    at_the_door(SecurityOptions(), visit)


def test_a_page_that_was_let_in_can_read_answers_and_refusals(key_file: Path) -> None:
    async def visit(door: Door) -> None:
        page = {"Origin": "app://chat"}
        asked = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        answer = await door.http.options(CHAT, headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-headers"] == "x-api-key"
        assert answer.headers.get_list("access-control-allow-origin") == ["app://chat"]
        for headers, status in ((page, 401), (page | BEARER, 200)):
            answer = await door.http.post(CHAT, json={}, headers=headers)
            assert answer.status_code == status
            assert answer.headers.get_list("access-control-allow-origin") == ["app://chat"]
            assert "x-request-id" in answer.headers

    at_the_door(SecurityOptions(api_key_file=key_file, cors_origins=("app://chat",)), visit)


# -- how much, how fast, how often


def test_a_body_that_is_announced_too_long_is_not_taken() -> None:
    async def visit(door: Door) -> None:
        answer = await door.http.post("/v1/messages", content=b"x" * 1001)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")
        assert (await door.http.post("/v1/messages", content=b"x" * 1000)).json()["bytes"] == 1000
        assert (await door.http.post("/api/blobs/x", content=b"x" * 2000)).json()["bytes"] == 2000  # a model's file
        assert (await door.http.post("/api/blobs/x", content=b"x" * 2001)).status_code == 413

    at_the_door(SecurityOptions(body_limit_bytes=1000, upload_limit_bytes=2000), visit)


def test_a_body_that_grows_too_long_is_cut_off_whatever_the_application_does() -> None:
    async def visit(door: Door) -> None:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield b"x" * 65536

        for path in (CHAT, "/careless"):
            answer = await door.http.post(path, content=parts())
            assert answer.status_code == 413
            assert answer.headers["connection"] == "close"
            assert answer.headers["x-request-id"]

    at_the_door(SecurityOptions(body_limit_bytes=1 << 20), visit)


@pytest.mark.slow
def test_a_body_that_stops_is_given_up() -> None:
    async def visit(door: Door) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n".encode()
        began = time.monotonic()
        answer = await door.raw(head, b'{"model"')
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"
        assert time.monotonic() - began < 15
        assert (await door.http.get("/health")).status_code == 200

    at_the_door(SecurityOptions(body_silence_seconds=0.3), visit)


def test_requests_are_counted_by_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{SECRET}\nanother-key-of-many-letters\n")
    path.chmod(0o600)

    async def visit(door: Door) -> None:
        statuses = [(await door.http.get(CHAT, headers=BEARER)).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        refused = await door.http.get(CHAT, headers=BEARER)
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.json()["error"]["type"] == "rate_limit_error"
        other = {"x-api-key": "another-key-of-many-letters"}
        assert (await door.http.get(CHAT, headers=other)).status_code == 200
        assert (await door.http.get("/health")).status_code == 200

    at_the_door(SecurityOptions(api_key_file=path, requests_per_minute=3), visit)


def test_a_stream_passes_piece_by_piece() -> None:
    async def visit(door: Door) -> None:
        async with door.http.stream("GET", "/stream") as answer:
            arrived = [time.monotonic() async for _ in answer.aiter_raw()]
        assert len(arrived) >= 3
        assert arrived[-1] - arrived[0] > 0.25

    at_the_door(SecurityOptions(), visit)


# -- ids, and what breaks inside


def test_a_request_has_an_id_that_the_client_may_choose() -> None:
    async def visit(door: Door) -> None:
        mine = await door.http.get(CHAT, headers={"X-Request-Id": "trace-1.a_B"})
        assert mine.headers.get_list("x-request-id") == ["trace-1.a_B"]
        made = [(await door.http.get(CHAT)).headers["x-request-id"] for _ in range(2)]
        assert made[0] != made[1]
        for bad in ("a b", "x" * 65, "<script>", '"'):
            answer = await door.http.get(CHAT, headers={"X-Request-Id": bad})
            assert answer.headers["x-request-id"] != bad

    at_the_door(SecurityOptions(), visit)


def test_what_breaks_inside_is_told_without_its_words() -> None:
    async def visit(door: Door) -> None:
        answer = await door.http.get("/broken", headers={"X-Request-Id": "find-me"})
        assert answer.status_code == 500
        assert "find-me" in answer.json()["error"]["message"]
        assert "prompt" not in answer.text

    at_the_door(SecurityOptions(), visit)


@pytest.mark.parametrize(
    "options", [{"host_names": ("http://x",)}, {"cors_origins": ("x",)}, {"api_key_file": Path("/nowhere/keys")}]
)
def test_options_that_are_no_good_are_told_at_the_start(options: dict[str, Any]) -> None:
    app = application()
    with pytest.raises(UserError):
        install(app, SecurityOptions(**options))
